"""One trial: the run's own training for a few optimizer steps, in a process of its own.

    python -P -m tuning.autotune.trial FILE

FILE is a request of process.py. What trains is the training function of the run, unchanged: its
config has the rows of the trial in place of the pool and the candidate's settings, and its run
directory counts steps instead of recording them. Once enough steps were timed the directory raises,
so that nothing is ever saved. Each rank leaves rank{N}.json beside FILE, written atomically: the
seconds of its steps, its peak memory, and how it ended.

    python -P -m tuning.autotune.trial --probe FILE

writes the name, the memory and the number of the GPUs that this process may use.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuning.autotune.config import AutotuneRunConfig
from tuning.autotune.space import Candidate
from tuning.autotune.subject import of_trial
from tuning.flags import plain, restore
from tuning.runs import atomic, lean_imports, memory, ranks
from tuning.runs.errors import cut
from tuning.runs.rundir import RunDirectory

WARM_UP, WARM_UP_COMPILED = 2, 4
"""Optimizer steps that are not timed."""
LEAST = 3
"""Optimizer steps that are timed however short the time is."""
PEAK_SECONDS = 0.25
_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a trial is told."""

    config: AutotuneRunConfig
    candidate: dict[str, Any]
    files: dict[str, str]
    """Of the rows, by pool."""
    rows: int
    """How many; of random ones too."""
    steps: int
    """Optimizer steps to time."""
    seconds: float
    """After this many, LEAST timed steps are enough."""
    parent: int
    """The process that started the trial, without which it must not go on."""


class Measured(BaseException):
    """Enough steps were timed. Not an Exception, which libraries catch."""


@dataclass(kw_only=True)
class Meter:
    """Times the steps of one rank, and notes what its training says of the loss."""

    path: Path
    steps: int
    seconds: float
    warm_up: int
    began: float = field(default_factory=time.monotonic)
    times: list[float] = field(default_factory=list)
    finite: bool = True
    _last: tuple[int, float] | None = None

    def step(self, number: int) -> None:
        """The optimizer step of this number is done; raises Measured after the last one."""
        _synchronize()
        now = time.perf_counter()
        if self._last and number == self._last[0] + 1 and number > self.warm_up:
            self.times.append(now - self._last[1])
        self._last = (number, now)
        short = time.monotonic() - self.began > self.seconds
        if len(self.times) >= self.steps or (short and len(self.times) >= LEAST):
            raise Measured

    def write(self, outcome: str | None = None, note: str = "") -> None:
        """Write what this rank has so far; with an outcome, for the last time."""
        record = {
            "outcome": outcome,
            "note": cut(" ".join(note.split()), 300),
            "steps": self.times,
            "peak": peak_memory(),
            "finite": self.finite,
        }
        atomic.write_json(self.path, record)


class TrialDirectory(RunDirectory):
    """The run directory of a trial: steps are timed, and nothing else is kept."""

    def __init__(self, path: Path, meter: Meter) -> None:
        super().__init__(path)
        self.meter = meter

    def progress(
        self, phase: str, at: int, of: int, note: str = "", *, final: bool = False
    ) -> None:
        """The end of a step."""
        if phase == "train" and not final:
            self.meter.step(at)

    def log_metrics(self, record: dict[str, Any]) -> None:
        """A loss or a gradient that is no number makes the trial worthless."""
        numbers = (record.get(name) for name in ("loss", "grad_norm"))
        if not all(n is None or math.isfinite(n) for n in numbers):
            self.meter.finite = False

    def rewind_metrics(self, step: int) -> None:
        """There are none."""


def main(words: list[str] | None = None) -> int:
    """Run the trial of a request; 0 whatever came of it, if that could be written down."""
    words = sys.argv[1:] if words is None else words
    if words[0] == "--probe":
        return _probe(Path(words[1]))
    path = Path(words[0])
    request = restore(Request, atomic.read_object(path) or {})
    if ranks.world_size() == 1 and not ranks.under_torchrun():
        _end_with(request.parent)
        if request.config.processes > 1:
            return _join(request.config.processes, path)
    else:
        _end_with(os.getppid())
    return run(request, path.parent)


def run(request: Request, folder: Path) -> int:
    """The trial in this process, one rank of it."""
    candidate = Candidate(**request.candidate)
    meter = Meter(
        path=folder / f"rank{ranks.rank()}.json",
        steps=request.steps,
        seconds=request.seconds,
        warm_up=WARM_UP_COMPILED if candidate.use_compile else WARM_UP,
    )
    directory = TrialDirectory(folder / "run", meter)
    directory.path.mkdir(exist_ok=True)
    directory.logs = folder / "logs"
    _watch_peak(meter)
    outcome, note = "crash", "it ended before enough steps were timed"
    try:
        _trainer(request)(directory)
    except Measured:
        outcome, note = "ok", ""
    except BaseException as error:
        note = f"{type(error).__name__}: {error}"
        outcome = (
            "oom" if memory.is_out_of_memory(note) or isinstance(error, MemoryError) else "crash"
        )
    meter.write(outcome, note)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # other ranks may wait in a collective; they are ended from outside


def peak_memory() -> int:
    """The most bytes that this rank needed: of the GPU, with what the context takes; else of the
    host.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return memory.peak_resident()
    device = ranks.local_rank()  # each thread has a current device of its own
    reserved = torch.cuda.memory_reserved(device)
    free, total = torch.cuda.mem_get_info(device)
    return int(torch.cuda.max_memory_reserved(device) + max(0, total - free - reserved))


def _synchronize() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _watch_peak(meter: Meter) -> None:
    """Write the memory of a rank that times no steps, which only rank 0 does, as it grows."""
    if ranks.is_first():
        return

    def watch() -> None:
        while True:
            time.sleep(PEAK_SECONDS)
            with contextlib.suppress(Exception):
                meter.write()

    threading.Thread(target=watch, daemon=True).start()


def _trainer(request: Request) -> Callable[[RunDirectory], None]:
    """The training of the run, as a function of its directory."""
    config = request.config
    steps = request.steps + WARM_UP_COMPILED + 1
    run = of_trial(config, Candidate(**request.candidate), request.files, request.rows, steps)
    from tuning.engine.ranks import join

    join()
    if config.serves == "pretrain":
        from tuning.engine.pretraining import pretrain

        return lambda directory: pretrain(run, directory)
    from tuning.training.backend import trainer_of

    train = trainer_of(run)
    if config.serves == "sft":
        return lambda directory: train(run, directory, [])
    from tuning.training.start import Start

    start = Start(
        parent=RunDirectory(Path(config.parent)) if config.parent else None,
        checkpoint=Path(config.checkpoint) if config.checkpoint else None,
        train_size=request.rows,
    )
    return lambda directory: train(run, directory, start, [])


def _end_with(parent: int) -> None:
    """End when the process that started this one does; be the first that the kernel kills for
    memory.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _join(processes: int, path: Path) -> int:
    """Start the ranks with torchrun, in this process."""
    from torch.distributed.run import parse_args
    from torch.distributed.run import run as torchrun

    place = ["--standalone", "--local_addr=127.0.0.1", f"--nproc_per_node={processes}"]
    torchrun(parse_args([*place, "-m", "tuning.autotune.trial", str(path)]))
    return 0


def _probe(path: Path) -> int:
    import torch

    first = torch.cuda.get_device_properties(0)
    found = {"name": first.name, "memory": first.total_memory, "count": torch.cuda.device_count()}
    atomic.write_json(path, found)
    return 0


def request_json(request: Request) -> dict[str, Any]:
    """A request as its file holds it."""
    return {**asdict(request), "config": plain(request.config)}


if __name__ == "__main__":
    from tuning.entry import QUIET

    lean_imports.install()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    sys.exit(main())

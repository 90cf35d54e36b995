"""How the processes of a stage are started, the same under every launcher: one Python, or several
that torchrun joins, on one node or on many.

    python -m tuning.launchers.processes tuning/run_pretrain.py --model tiny

starts the processes of one node. Run it once on each node: which node this is comes from NUM_NODES,
NODE_RANK, MASTER_ADDR and MASTER_PORT if they are set, and from SLURM otherwise; TUNING_PROCESSES
is the number of processes per node.

torchrun forwards neither signals nor exit codes. A stop is requested through the file that
TUNING_STOP names, and the outcome is recorded in the file that TUNING_EXIT names. The same holds
for a stage in a container: TUNING_CONTAINER is the command that starts Python there.

A stage that is to be tuned is tuned first, in one process (phases/tune.py).
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuning import config as site
from tuning.launchers.slurm.client import Slurm
from tuning.phases.tune import TUNES_FOR
from tuning.phases.work import STAGE_FLAG
from tuning.plan import Stage, read_stage, write_stage
from tuning.runs import outcome
from tuning.runs.errors import EXIT_AGAIN, EXIT_FAILED, UserError
from tuning.runs.interrupt import (
    CONTAINER_VARIABLE,
    PARENT_VARIABLE,
    POLL_SECONDS,
    STOP_VARIABLE,
)

MODULE = "tuning.launchers.processes"
FIRST_PORT = 20000
PORTS = 10000


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the processes of a stage run."""

    nodes: int = 1
    processes: int = 1
    """On each node."""
    devices: tuple[str, ...] = ()
    """The GPUs that they may use; empty: those that the environment allows."""
    node: int | None = 0
    """The number of this node, from 0; None: start all nodes of this SLURM job."""
    address: str = "127.0.0.1"
    """Of the first node."""
    port: int | None = None
    """Of the first node; None: any free port, which is possible on a single node."""

    @property
    def joined(self) -> bool:
        """Whether there is more than one process, so that torchrun starts them."""
        return self.nodes * self.processes > 1

    def environment(self, cores: int | None = None) -> dict[str, str]:
        """The variables of its processes: their GPUs, and their share of `cores` as threads unless
        OMP_NUM_THREADS is set already.
        """
        found = {"CUDA_VISIBLE_DEVICES": ",".join(self.devices)} if self.devices else {}
        if self.node is None:
            found["MASTER_ADDR"] = self.address  # in a container, SLURM cannot be asked for it
        if cores and not os.environ.get("OMP_NUM_THREADS"):
            found["OMP_NUM_THREADS"] = str(max(1, cores // self.processes))
        return found


def stage_words(stage: Stage, folder: Path, *, wait: bool = True, wandb: str = "off") -> list[str]:
    """The script of a stage of the experiment in `folder`, and its arguments.

    Writes the file that the stage reads: its resolved configs.
    """
    script = str(site.PACKAGE / stage.script)
    if stage.role == "report":
        return [script, "report", folder.name]
    file = folder / "stages" / f"{stage.name}.stage.json"
    write_stage(file, stage)
    trains = "train" in stage.phases
    return [
        script,
        "--stage",
        str(file),
        *([] if wait else ["--no_wait"]),
        *(["--wandb", wandb] if trains and wandb != "off" else []),
    ]


def command(words: Sequence[str], placement: Placement) -> list[str]:
    """What starts a script with its arguments at a placement: Python, torchrun, or srun; in the
    container of TUNING_CONTAINER, if there is one.
    """
    python = shlex.split(os.environ.get(CONTAINER_VARIABLE, "")) or [sys.executable]
    flags = _torchrun_flags(placement) if placement.node is not None else []
    start = [*python, "-P", "-m", MODULE, *flags, *words] if placement.joined else [*python, *words]
    if placement.node is not None and python[0] != "srun":
        return start
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    return [
        "srun",
        f"--nodes={placement.nodes}",
        f"--ntasks={placement.nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={cores}",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        *start[python[0] == "srun" :],
    ]


def signals_reach(placement: Placement) -> bool:
    """Whether what `command()` starts passes signals and exit codes on to a stage."""
    return not placement.joined and not os.environ.get(CONTAINER_VARIABLE)


def _torchrun_flags(placement: Placement) -> list[str]:
    """The flags of torchrun on one node."""
    processes = f"--nproc_per_node={placement.processes}"
    if placement.port is None:
        return ["--standalone", "--local_addr=127.0.0.1", processes]
    return [
        f"--nnodes={placement.nodes}",
        f"--node_rank={placement.node}",
        processes,
        f"--master_addr={placement.address}",
        f"--master_port={placement.port}",
    ]


def python_path() -> str:
    """PYTHONPATH with this code first."""
    code = str(Path(site.CHECKOUT))
    others = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and p != code]
    return ":".join([code, *others])


def this_node(environ: Mapping[str, str] = os.environ) -> Placement:
    """The placement that the environment describes; UserError for a variable that is no number."""
    nodes = _number(environ, "NUM_NODES", "SLURM_NNODES", 1)
    address = environ.get("MASTER_ADDR") or "127.0.0.1"
    if not environ.get("MASTER_ADDR") and nodes > 1:
        if "SLURM_JOB_NODELIST" not in environ:
            raise UserError("NUM_NODES is above 1: MASTER_ADDR must name the first node.")
        slurm = Slurm()
        address = slurm.address(slurm.hosts(environ["SLURM_JOB_NODELIST"])[0])
    job = _number(environ, "SLURM_JOB_ID", "", 0)
    port = _number(environ, "MASTER_PORT", "", FIRST_PORT + job % PORTS)
    return Placement(
        nodes=nodes,
        processes=_number(environ, "TUNING_PROCESSES", "", 1),
        node=_number(environ, "NODE_RANK", "SLURM_NODEID", 0),
        address=address,
        port=port if nodes > 1 or environ.get("MASTER_PORT") else None,
    )


def this_job(environ: Mapping[str, str] = os.environ) -> Placement:
    """The placement of a stage that a SLURM job starts from its first node."""
    found = this_node(environ)
    srun = found.nodes > 1 and "SLURM_JOB_ID" in environ and "NODE_RANK" not in environ
    return replace(found, node=None) if srun else found


def _number(environ: Mapping[str, str], by_hand: str, by_slurm: str, default: int) -> int:
    name = by_hand if environ.get(by_hand) else by_slurm
    value = environ.get(name) or str(default)
    if not value.isdigit():
        raise UserError(f"{name} is '{value}'; it must be a whole number.")
    return int(value)


def main() -> int:
    """Start the processes of this node and wait for them; the flags of torchrun may be given."""
    words = sys.argv[1:]
    own = next((at for at, word in enumerate(words) if not word.startswith("--")), len(words))
    if own == len(words):
        raise UserError(f"name a script: python -m {MODULE} tuning/run_pretrain.py --model ...")
    flags = words[:own] or _torchrun_flags(this_node())
    _stop_with_parent()
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    if not _tunes_first(flags, words[own:]):
        return _torchrun([*flags, *words[own:]])
    if code := _tune(flags, words[own:]):
        return code
    outcome.forget()  # it is that of the tuning; the training has none yet
    left = [word for word in words[own:] if word != "--force"]  # it holds for both together
    return _torchrun([*flags, *left])


def _tune(flags: Sequence[str], words: Sequence[str]) -> int:
    """Tune a stage that asks for it in one process, before the processes that train it hold its
    devices; the exit code, 0 to go on.
    """
    processes = _place(flags)["--nproc_per_node"]
    child = subprocess.Popen(
        [sys.executable, *words], env=os.environ | {TUNES_FOR: processes}, stdin=subprocess.DEVNULL
    )
    stop, asked = os.environ.get(STOP_VARIABLE), False
    while child.poll() is None:
        if stop and not asked and Path(stop).exists():
            asked = True
            child.terminate()
        time.sleep(POLL_SECONDS)
    code = child.wait()
    return 128 - code if code < 0 else code


def _place(flags: Sequence[str]) -> dict[str, str]:
    given = dict(flag.partition("=")[::2] for flag in flags)
    return {"--nproc_per_node": "1", "--nnodes": "1"} | given


def _tunes_first(flags: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a stage of several processes on one node is to be tuned, by its file or its flags.
    Over several nodes its ranks say that they are not tuned for.
    """
    place = _place(flags)
    processes = place["--nproc_per_node"]
    if place["--nnodes"] != "1" or not processes.isdigit() or int(processes) < 2:
        return False
    if STAGE_FLAG in words[:-1]:
        return read_stage(Path(words[words.index(STAGE_FLAG) + 1])).tunes
    return "--autotune" in words


def _stop_with_parent() -> None:
    """Request a stop if the supervisor that started this process is gone."""
    parent, stop = os.environ.get(PARENT_VARIABLE), os.environ.get(STOP_VARIABLE)
    if stop and parent == str(os.getppid()):
        threading.Thread(target=_watch, args=(int(parent), Path(stop)), daemon=True).start()


def _watch(parent: int, stop: Path) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    stop.touch()


def _torchrun(words: list[str]) -> int:
    """torchrun in this process; a rank that was killed by a signal is recorded as the outcome."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    path = outcome.path()
    try:
        run(parse_args(words))
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        listed = ", ".join(f"rank {rank}: {code}" for rank, code in sorted(codes.items()))
        print(f"processes failed with exit codes ({listed})", file=sys.stderr, flush=True)
        killed = killed_by(codes.values(), outcome.read(path) if path else None)
        if path and killed is not None:
            outcome.write(path, outcome.Outcome(code=killed))
        return EXIT_FAILED
    return 0


def killed_by(codes: Iterable[int], recorded: outcome.Outcome | None) -> int | None:
    """The exit code of a rank whose signal explains the end of the stage; None if nothing is to be
    added to what was recorded.

    torchrun ends ranks by SIGTERM, and a rank aborts when another has failed (its connection
    breaks, or it is shut down while a thread writes), so a recorded reason counts over SIGABRT.
    """
    if recorded is not None and recorded.code == EXIT_AGAIN:
        return None
    follows = {-signal.SIGTERM}
    if recorded is not None and recorded.reason:
        follows.add(-signal.SIGABRT)
    return next((code for code in codes if code < 0 and code not in follows), None)


if __name__ == "__main__":
    from tuning.entry import exit_code

    sys.exit(exit_code(main))

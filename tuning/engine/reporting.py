"""Reports of a run of the engine: metrics.jsonl (the record), log.txt, a progress bar, W&B, and the
trace of a profiler.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from tuning import config as site
from tuning.engine import ranks
from tuning.engine.config import OutputConfig
from tuning.runs import atomic
from tuning.runs.rundir import RunDirectory
from tuning.runs.wandb_run import Reported


class Reporter:
    """Records the metrics of each step and each validation; only rank 0 writes."""

    def __init__(
        self,
        directory: RunDirectory,
        output: OutputConfig,
        name: str,
        *,
        steps: int | None,
        done: int,
        report_to: list[str],
    ) -> None:
        """`name`: of the folder under log_dir; `done`: the step that the run resumes from."""
        self.directory = directory
        self.steps = steps
        self.every = output.log_steps
        self._first = ranks.rank() == 0
        self._done = done
        root = Path(output.log_dir) if output.log_dir else site.home() / "outputs/logs"
        root = directory.logs or root
        self.folder = root / name
        self._report_to = report_to if self._first else []
        self._wandb: Reported | None = None
        self._profile = (
            Profile(self.folder, output.steps_to_profile)
            if output.use_profiler and self._first
            else None
        )

    def __enter__(self) -> Reporter:
        if self._first:
            self.directory.rewind_metrics(self._done)
            self._log = self._rewound_log()
        if "wandb" in self._report_to:
            settings = (self.directory.config or {}).get("settings")
            self._wandb = Reported(self.directory.name, settings)
        self._bar = tqdm(
            total=self.steps,
            initial=self._done,
            desc="training",
            unit="step",
            mininterval=2.0,
            disable=not self._first,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._first:
            self._log.close()
        if self._profile:
            self._profile.close()
        if self._wandb is not None:
            self._wandb.finish()

    def step(self, record: dict[str, Any]) -> None:
        """The metrics of a step."""
        if not self._first:
            return
        step, note = record["step"], f"loss {record['loss']:.3f}"
        if step % self.every == 0 or step == self.steps:
            self._write(record, f"{step} train {record['loss']:.4f}")
        self.directory.progress("train", step, self.steps or 0, note)
        self._bar.update(1)
        self._bar.set_postfix_str(note, refresh=False)
        if self._profile:
            self._profile.step(step)

    def validation(self, step: int, loss: float) -> None:
        """A validation loss after a step."""
        if self._first:
            self._write({"step": step, "val_loss": loss}, f"{step} val {loss:.4f}")

    def _write(self, record: dict[str, Any], line: str) -> None:
        self.directory.log_metrics(record)
        self._log.write(line + "\n")
        if self._wandb is not None:
            self._wandb.log(record)

    def _rewound_log(self) -> TextIO:
        """log.txt, open to append, without the lines after the step that the run resumes from."""
        log = self.folder / "log.txt"
        kept = []
        with contextlib.suppress(FileNotFoundError):
            lines = log.read_text(encoding="utf-8").splitlines()
            kept = [x for x in lines if x and int(x.split()[0]) <= self._done]
        atomic.write_text(log, "".join(f"{line}\n" for line in kept))
        return log.open("a", encoding="utf-8", buffering=1)


class Profile:
    """A trace of some steps of rank 0, for chrome://tracing or Perfetto."""

    def __init__(self, folder: Path, steps: tuple[int, ...]) -> None:
        self.path = folder / "rank0_trace.json"
        self.first, self.last = steps
        self._profiler: Any = None

    def step(self, done: int) -> None:
        """Called after each step; recording begins at the end of the step before the first one."""
        from torch.profiler import ProfilerActivity, profile

        if self._profiler is not None and done >= self.last:
            self.close()
        elif self._profiler is None and self.first - 1 <= done < self.last and not self._written:
            self._profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profiler.__enter__()

    @property
    def _written(self) -> bool:
        return self.path.exists()

    def close(self) -> None:
        """Write the trace."""
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        temporary = self.path.with_suffix(".tmp.json")
        profiler.export_chrome_trace(str(temporary))
        temporary.replace(self.path)

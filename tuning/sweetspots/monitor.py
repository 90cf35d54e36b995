"""Monitors a measure such as perplexity during SFT, whichever trainer runs it: logs measurements
to metrics.jsonl, evaluates the sweetspot rules, and saves a checkpoint for each rule that fires.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuning.data.budget import data_points_seen, data_used
from tuning.runs import atomic, manifest, ranks
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.config import PerplexityConfig
from tuning.sweetspots.rules import PERPLEXITY, Rule, Rules
from tuning.sweetspots.store import METADATA, checkpoint_name


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The result of a probe: the value for the rules, and the entries for metrics.jsonl."""

    value: float
    metrics: dict[str, float]


class Probe(Protocol):
    """Measures a model during training without changing it."""

    def measure(self, model: Any) -> Measurement: ...


@dataclass(frozen=True, kw_only=True)
class Spending:
    """Examples that a run has consumed after a number of optimizer steps."""

    train_size: int
    batch_size: int

    def seen(self, step: int) -> int:
        """Examples consumed, counting repeats."""
        return data_points_seen(step, self.train_size, self.batch_size)

    def used(self, step: int) -> int:
        """Distinct examples consumed."""
        return data_used(step, self.train_size, self.batch_size)


class Monitor:
    """Evaluates measurements and writes sweetspots into a run directory."""

    def __init__(
        self,
        config: PerplexityConfig,
        spending: Spending,
        directory: RunDirectory,
        run_hash: str,
    ) -> None:
        self.config = config
        self.rules = Rules(config.rules)
        self.spending = spending
        self.directory = directory
        self.run_hash = run_hash

    def due(self, step: int, steps: int) -> bool:
        """Whether to measure after `step` of `steps` optimizer steps: before the first one, every
        `eval_steps`, and after the last.
        """
        return step % self.config.eval_steps == 0 or step >= steps

    def begin(self, step: int, steps: int) -> None:
        """Say that a measurement begins after `step` of `steps`: the first one has no step before
        it that would have told where the run is.
        """
        if ranks.is_first():
            note = f"measures {PERPLEXITY.title}"
            self.directory.progress("train", step, steps, note, final=True)

    def observe(self, step: int, measured: Measurement) -> list[Rule]:
        """Record the measurement after `step` optimizer steps; returns the rules that it fires."""
        if ranks.is_first():
            seen = {"data_points_seen": self.spending.seen(step)}
            self.directory.log_metrics({"step": step, **measured.metrics, **seen})
        fired = self.rules.observe(step, measured.value)
        if step == 0:
            for label, value in self.rules.met_by_base.items():
                logger.info(f"{label}: met by the base, {value:.3g}; no fork for it")
        for rule in fired:
            reached = f"{rule.measure.title} {measured.value:.4g}"
            logger.info(f"step {step}: {reached}, sweetspot {rule.label}")
        return fired

    @property
    def stops(self) -> bool:
        """Whether to stop early: it is enabled and no rule is left to fire."""
        return self.config.early_stop and self.rules.finished

    def missing(self, fired: list[Rule]) -> list[Rule]:
        """The fired rules whose sweetspot is not on disk yet; after a resume some may be."""
        return [rule for rule in fired if not manifest.is_whole(self.target(rule))]

    def target(self, rule: Rule) -> Path:
        """The directory of a rule's sweetspot."""
        return self.directory.path / checkpoint_name(rule.label)

    def save(self, rule: Rule, step: int, write: Callable[[Path], None]) -> None:
        """Save a sweetspot at the newest measurement; `write` saves the weights to a folder."""
        with atomic.whole_directory(self.target(rule)) as folder:
            write(folder)
            atomic.write_json(folder / METADATA, self._metadata(rule, step))
            manifest.write_manifest(folder)

    def _metadata(self, rule: Rule, step: int) -> dict[str, Any]:
        return {
            **rule.metadata(),
            rule.measure.title: self.rules.history[-1],
            "global_step": step,
            "data_points_seen": self.spending.seen(step),
            "sft_data_used": self.spending.used(step),
            "checkpoint_path": str(Path(self.directory.name) / self.target(rule).name),
            "config_hash": self.run_hash,
        }

"""Monitors measures such as perplexity during SFT, whichever trainer runs it: logs measurements
to metrics.jsonl, evaluates the sweetspot rules, and saves a checkpoint for each rule that fires.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tuning.data.budget import data_points_seen, data_used
from tuning.runs import atomic, manifest, ranks
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.config import PassAtKStoppingConfig, PerplexityConfig
from tuning.sweetspots.rules import PERPLEXITY, Measure, Rule, Rules
from tuning.sweetspots.store import METADATA, checkpoint_name

_PASS_AT_K = "pass_at_k"
"""The key under which a checkpoint holds the state of its rules."""


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
    """Evaluates the measurements of one measure and writes its sweetspots into a run directory."""

    def __init__(
        self,
        measure: Measure,
        rules: Iterable[Rule],
        every: int,
        spending: Spending,
        directory: RunDirectory,
        run_hash: str,
    ) -> None:
        """`every`: optimizer steps between two measurements."""
        self.measure = measure
        self.rules = Rules(rules)
        self.every = every
        self.spending = spending
        self.directory = directory
        self.run_hash = run_hash
        self.owed = False
        """Whether the measurement after the present step was begun and not finished."""

    def due(self, step: int, steps: int) -> bool:
        """Whether to measure after `step` of `steps` optimizer steps: before the first one, every
        `every`, and after the last.
        """
        return step % self.every == 0 or step >= steps

    def begin(self, step: int, steps: int) -> None:
        """Say that a measurement begins after `step` of `steps`: the first one has no step before
        it that would have told where the run is.
        """
        if ranks.is_first():
            note = f"measures {self.measure.title}"
            self.directory.progress("train", step, steps, note, final=True)

    def observe(self, step: int, measured: Measurement) -> list[Rule]:
        """Record the measurement after `step` optimizer steps; returns the rules that it fires."""
        self.owed = False
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


class Monitors:
    """All measures of a run: perplexity always, pass@k where it has a rule. They end the run
    together, and a checkpoint carries their state.
    """

    def __init__(
        self,
        perplexity: PerplexityConfig,
        pass_at_k: PassAtKStoppingConfig,
        spending: Spending,
        directory: RunDirectory,
        run_hash: str,
    ) -> None:
        where = (spending, directory, run_hash)
        self.early_stop = perplexity.early_stop
        self.perplexity = Monitor(PERPLEXITY, perplexity.rules, perplexity.eval_steps, *where)
        self.pass_at_k = (
            Monitor(pass_at_k.measure, pass_at_k.rules, pass_at_k.pass_at_k_every, *where)
            if pass_at_k.rules
            else None
        )

    @property
    def stops(self) -> bool:
        """Whether to stop early: it is enabled, and the last open rule has fired."""
        finished = any(rules.finished for rules in self._rules)
        return self.early_stop and finished and not any(rules.open for rules in self._rules)

    @property
    def result(self) -> dict[str, Any]:
        """The entries of result.json: what was measured last and of the base, and the rules."""
        found: dict[str, Any] = {
            "perplexity": self.perplexity.rules.history[-1],
            "base_perplexity": self.perplexity.rules.history[0],
        }
        if self.pass_at_k is not None:
            title, history = self.pass_at_k.measure.title, self.pass_at_k.rules.history
            found |= {title: history[-1], f"base_{title}": history[0]}
        outcomes = [rules.outcome() for rules in self._rules]
        return found | {"sweetspots": {label: o for each in outcomes for label, o in each.items()}}

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint, as JSON values; that of perplexity, which every run
        has, at the top.
        """
        found = self.perplexity.rules.state()
        if self.pass_at_k is not None:
            found[_PASS_AT_K] = self.pass_at_k.rules.state() | {"owed": self.pass_at_k.owed}
        return found

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state()` returned, to resume."""
        self.perplexity.rules.load(state)
        if self.pass_at_k is not None:
            self.pass_at_k.rules.load(state[_PASS_AT_K])
            self.pass_at_k.owed = state[_PASS_AT_K]["owed"]

    @property
    def all(self) -> list[Monitor]:
        """The monitors that there are."""
        return [self.perplexity, *([self.pass_at_k] if self.pass_at_k else [])]

    @property
    def _rules(self) -> list[Rules]:
        return [monitor.rules for monitor in self.all]

"""What is made of a perplexity that was measured during SFT, whoever trains: a line of metrics, an
answer of the rules, and a checkpoint at every sweetspot.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuning.evaluation.perplexity import Perplexity
from tuning.runs import atomic, manifest
from tuning.runs.rundir import RunDirectory
from tuning.runs.sweetspot import METADATA, checkpoint_name
from tuning.training.budget import data_points_seen, data_used
from tuning.training.config_training import SFTRunConfig, parse_patience
from tuning.training.sweetspots import Patience, Rule, SweetspotRules, Threshold


def rules_of(config: SFTRunConfig) -> SweetspotRules:
    """The rules of a config, thresholds first."""
    thresholds = [Threshold(value=v) for v in config.perplexity.perplexity_thresholds]
    patience = [
        Patience(evaluations=n, decrease=d)
        for n, d in map(parse_patience, config.perplexity.perplexity_patience)
    ]
    return SweetspotRules([*thresholds, *patience])


class PerplexityWatch:
    """Takes in measurements and writes sweetspots into the directory of a run."""

    def __init__(
        self,
        config: SFTRunConfig,
        rules: SweetspotRules,
        directory: RunDirectory,
        say: Callable[[str], None] = print,
        *,
        writes: bool = True,
    ) -> None:
        """`writes`: whether this process logs what it takes in; of several, one does."""
        self.config = config
        self.rules = rules
        self.directory = directory
        self.say = say
        self.writes = writes
        self._size = config.dataset.train_size or 0
        self._batch = config.training.effective_batch_size

    def due(self, step: int, steps: int) -> bool:
        """Whether to measure after `step` of `steps` optimizer steps: before the first one, every
        `eval_steps`, and after the last.
        """
        return step % self.config.perplexity.eval_steps == 0 or step >= steps

    def observe(self, step: int, measured: Perplexity) -> list[Rule]:
        """Take in what was measured after `step` optimizer steps; the rules that fire with it."""
        if self.writes:
            self._log(step, measured)
        fired = self.rules.observe(step, measured.token_level)
        if step == 0:
            for label, value in self.rules.met_by_base.items():
                self.say(f"{label}: met by the base, {value:.3g}; it makes no fork")
        for rule in fired:
            perplexity = f"perplexity {measured.token_level:.4g}"
            self.say(f"step {step}: {perplexity}, sweetspot {rule.label}")
        return fired

    def _log(self, step: int, measured: Perplexity) -> None:
        self.directory.log_metrics(
            {
                "step": step,
                "perplexity": measured.token_level,
                "perplexity_sample_mean": measured.sample_mean,
                "data_points_seen": self._seen(step),
            }
        )

    @property
    def stops(self) -> bool:
        """Whether there is nothing left to train for."""
        return self.config.perplexity.early_stop and self.rules.finished

    def missing(self, fired: list[Rule]) -> list[Rule]:
        """Those of the rules whose sweetspot is not on disk yet."""
        return [rule for rule in fired if not manifest.is_whole(self.target(rule))]

    def target(self, rule: Rule) -> Path:
        """Where the sweetspot of a rule belongs."""
        return self.directory.path / checkpoint_name(rule.label)

    def save(self, rule: Rule, step: int, write: Callable[[Path], None]) -> None:
        """Save the sweetspot of the newest measurement; `write` puts the weights into a folder."""
        with atomic.whole_directory(self.target(rule)) as folder:
            write(folder)
            atomic.write_json(folder / METADATA, self._metadata(rule, step))
            manifest.write_manifest(folder)

    def _metadata(self, rule: Rule, step: int) -> dict[str, Any]:
        return {
            "threshold_type": rule.kind,
            "threshold_value": rule.value,
            "perplexity": self.rules.history[-1],
            "global_step": step,
            "data_points_seen": self._seen(step),
            "sft_data_used": data_used(step, self._size, self._batch),
            "checkpoint_path": str(Path(self.directory.name) / self.target(rule).name),
            "config_hash": self.config.hash,
        }

    def _seen(self, step: int) -> int:
        return data_points_seen(step, self._size, self._batch)

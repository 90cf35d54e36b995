"""Sweetspots on disk: checkpoints of an SFT run where a rule was met, and why one is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.runs import manifest
from tuning.runs.atomic import read_object
from tuning.runs.errors import Skipped, StageFailed, UserError, nearest
from tuning.runs.identity import digest
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.rules import brief, parse

METADATA = "sweetspot_metadata.json"


@dataclass(frozen=True, kw_only=True)
class Sweetspot:
    """A checkpoint that a fork starts from."""

    label: str
    path: Path
    metadata: dict[str, Any]

    @property
    def data_used(self) -> int:
        """Distinct SFT examples used to reach it."""
        return int(self.metadata["sft_data_used"])

    def left_of(self, total_data: int) -> int:
        """Examples of the budget left for a fork; raises Skipped if there are none."""
        left = total_data - self.data_used
        if left <= 0:
            reason = f"SFT used {self.data_used} of {total_data} examples; none is left"
            raise Skipped(reason, "no_budget_left")
        return left


def checkpoint_name(label: str) -> str:
    """`checkpoint-sweetspot-2.0` for `ppl-2.0`, `checkpoint-sweetspot-pass@1-0.30` for that."""
    return f"checkpoint-sweetspot-{brief(parse(label))}"


def sweetspot_name(sft_run: str, label: str) -> str:
    """The name under which a sweetspot is evaluated: `{sft_run}_sweetspot-ppl-2.0`."""
    return f"{sft_run}_sweetspot-{label}"


def sweetspot_hash(sft_hash: str, label: str) -> str:
    """The hash of a sweetspot as an artifact, from the hash of its run and its label."""
    return digest({"run": sft_hash, "sweetspot": label})


def find_sweetspot(parent: RunDirectory, label: str) -> Sweetspot:
    """A sweetspot of an SFT run.

    Raises Skipped if the finished run has none, StageFailed if the run may still reach it, and
    UserError if the run has no such rule.
    """
    path = parent.path / checkpoint_name(label)
    if parent.is_current and manifest.is_whole(path):
        return Sweetspot(label=label, path=path, metadata=read_object(path / METADATA) or {})
    outcomes = parent.result.get("sweetspots")
    if not parent.done("train") or outcomes is None:
        raise StageFailed(f"run '{parent.name}' has not reached {label} yet.")
    if label not in outcomes:
        raise UserError(
            f"run '{parent.name}' has no sweetspot '{label}'; it has: "
            f"{', '.join(outcomes) or 'none'}.{nearest(label, outcomes)}"
        )
    outcome = outcomes[label]
    if outcome["state"] == "met_by_base":
        raise Skipped(f"met by the base, {outcome['value']:.3g}", "met_by_base")
    raise Skipped(parse(label).missed(outcome["best"]), "unreached")

"""What searches found, kept under TUNING_HOME/cache/autotune/{key}/:

    about.json     what the key stands for
    history.jsonl  the observations, as they came
    choice.json    what is used from then on; written last

The key is a hash of all that memory and speed depend on. One process searches a key at a time,
under the lock of its folder; a search that was killed is continued by the next one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.autotune.observation import History, Observation
from tuning.autotune.space import KNOBS, Candidate
from tuning.autotune.subject import Subject
from tuning.flags import plain
from tuning.runs import atomic, provenance
from tuning.runs.identity import digest
from tuning.runs.json_text import NotJSON
from tuning.runs.lock import Lock
from tuning.training.backend import chosen

FORMAT = 1
LIBRARIES = ("torch", "transformers", "trl", "peft", "liger-kernel", "bitsandbytes")
BUCKET = 1.1
"""Lengths within this factor of each other are the same."""
TRAINING = (
    "optimizer",
    "num_generations",
    "max_completion_length",
    "grpo_beta",
    "kl_batch_size",
    "sft_loss_weight",
    "osft",
    "osft_unfreeze_rank_ratio",
    "train_dtype",
    "precision",
)
"""Settings of a training that its memory or speed depends on."""
OTHER = ("device", "lengths")
"""What a neighbour may differ in."""


def root() -> Path:
    """One folder a key."""
    return site.home() / "cache" / "autotune"


def about(subject: Subject) -> dict[str, Any]:
    """All that the memory and the speed of a run's candidates depend on, as JSON values."""
    run, device, sample = subject.run, subject.device, subject.sample
    model = getattr(run, "model", None)
    t = plain(run.training)
    return {
        "format": FORMAT,
        "device": [device.name, device.capacity],
        "processes": subject.config.processes,
        "method": subject.method,
        "shape": plain(subject.workload) | {"longest": 0, "mean": 0, "lengths": []},
        "adapter": None if subject.on_engine else plain(run.lora),
        "opened": None if subject.on_engine else [run.model.load_in_4bit, chosen(run)],
        "dtype": getattr(model, "dtype", "auto"),
        "lengths": [bucket(sample.longest), bucket(sample.mean)],
        "max_seq_length": getattr(model, "max_seq_length", None),
        "training": {name: t[name] for name in TRAINING if name in t},
        "osft": plain(getattr(run, "engine", None)) if subject.on_engine else None,
        "loss": t.get("loss") or plain(getattr(run, "loss", None)),
        "liger": run.compute.use_liger_kernels,
        "target": subject.space.target,
        "fixed": subject.space.fixed_micro_batch,
        "knobs": plain(KNOBS[subject.method]) | {"sep_sizes": list(subject.space.sep_sizes)},
        "least": subject.space.longest if KNOBS[subject.method].token_budget else None,
        "versions": {name: provenance.version(name) for name in LIBRARIES},
    }


def bucket(length: float) -> int:
    """The number of the bucket of a length, each BUCKET times as long as the one before."""
    return math.ceil(math.log(max(length, 1)) / math.log(BUCKET))


def disown(key: str, observation: Observation) -> None:
    """Add what a training observed of the choice of a key, and drop the choice."""
    folder = root() / key
    if folder.is_dir():
        History(folder / "history.jsonl").append(observation)
        (folder / "choice.json").unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A choice in the cache."""

    candidate: Candidate
    trials: int
    seconds: float
    """Of all searches of this key."""
    ended: str
    """Why the search ended."""
    score: float | None = None
    prediction_error: str | None = None
    why: str = ""


class Entry:
    """The folder of a key."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self.about = dict(about)
        self.key = digest(self.about)[:16]
        self.path = root() / self.key

    @property
    def lock(self) -> Lock:
        """Held by the one process that searches."""
        return Lock(self.path)

    @property
    def history(self) -> History:
        """The observations of this key."""
        return History(self.path / "history.jsonl")

    def choice(self) -> Kept | None:
        """What was found; None if nothing was, or the file cannot be used."""
        try:
            found = atomic.read_object(self.path / "choice.json")
            if found is None:
                return None
            found["candidate"] = Candidate(**found["candidate"])
            return Kept(**found)
        except (NotJSON, TypeError, KeyError):
            return None

    def begin(self) -> None:
        """Say what the key stands for."""
        atomic.write_json(self.path / "about.json", self.about)

    def keep(self, kept: Kept) -> None:
        """Record what was found."""
        atomic.write_json(self.path / "choice.json", asdict(kept))

    def forget(self) -> None:
        """Drop the observations: nothing of them can be used, and the next job tries anew."""
        self.history.path.unlink(missing_ok=True)

    def neighbours(self) -> list[tuple[dict[str, Any], Sequence[Observation]]]:
        """(about, observations) of keys that differ in nothing but device and lengths, those of the
        same device first.
        """
        found = []
        for path in sorted(root().glob("*/about.json")):
            try:
                other = atomic.read_object(path) or {}
            except NotJSON:
                continue
            if path.parent == self.path or not self._is_neighbour(other):
                continue
            if seen := History(path.parent / "history.jsonl").read():
                found.append((other, seen))
        return sorted(found, key=lambda pair: pair[0]["device"] != self.about["device"])

    def _is_neighbour(self, other: Mapping[str, Any]) -> bool:
        return all(other.get(k) == v for k, v in self.about.items() if k not in OTHER)

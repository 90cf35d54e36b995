"""A training state on disk: everything that the next step depends on, whole or not there at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tuning.engine import ranks
from tuning.runs.atomic import whole_directory
from tuning.runs.manifest import checkpoint_directory, is_whole, prune, write_manifest

STATE = "training_state.pt"


@dataclass(kw_only=True)
class TrainingState:
    """Where a training stands after `step` optimizer steps."""

    model: torch.nn.Module
    """The weights."""
    optimizer: torch.optim.Optimizer
    """AdamW with its moments."""
    step: int = 0
    """Optimizer steps done."""
    tokens: int = 0
    """Tokens with a loss seen so far."""
    seconds: float = 0.0
    """Wall time spent in training, over all the attempts that led here."""


def save(state: TrainingState, directory: Path, *, keep: int = 2) -> Path:
    """Write `checkpoint-{step}` under `directory` and delete all but the newest `keep`.

    A checkpoint of this step that is already whole is left as it is. The first process writes; all
    must call this, and it returns when the checkpoint is there.
    """
    target = checkpoint_directory(directory, state.step)
    content = _content(state)
    if ranks.rank() == 0:
        if not is_whole(target):
            with whole_directory(target) as temporary:
                torch.save(content, temporary / STATE)
                write_manifest(temporary)
        prune(directory, keep)
    ranks.wait()
    return target


def load(state: TrainingState, checkpoint: Path) -> None:
    """Put `state`, and torch's random numbers, back to where `checkpoint` was written.

    With another number of processes the random numbers (of dropout) begin anew.
    """
    content = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.step, state.tokens = content["step"], content["tokens"]
    state.seconds = content["seconds"]
    if len(content["rng"]) == ranks.world_size():
        cpu, cuda = content["rng"][ranks.rank()]
        torch.set_rng_state(cpu)
        if torch.cuda.is_available() and cuda is not None:
            torch.cuda.set_rng_state(cuda)


def _content(state: TrainingState) -> dict[str, object]:
    return {
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "step": state.step,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "rng": ranks.gather(
            (
                torch.get_rng_state(),
                torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
            )
        ),
    }

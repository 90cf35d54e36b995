"""The preference methods. To add one, add

- its entry in METHODS,
- the module of its trainer, which is imported only when it trains,
- its settings as fields of DPOTrainingConfig (tuning/training/config.py), marked with its name,

and its name under `pft_methods` in collections.yaml.
"""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.runs.errors import choose
from tuning.settings import require

PAIRS = ("prompt", "chosen", "rejected")
UNPAIRED = ("prompt", "completion", "label")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A preference method."""

    name: str
    columns: tuple[str, ...]
    """The columns of the preference pool that it reads."""
    unpaired: bool = False
    """Whether a pool of unpaired rows will do, in which each is an example of its own."""
    micro_batches: bool = True
    """Whether the micro-batch changes memory and speed only; otherwise it is a setting of its own,
    and --micro_batch_size is refused."""
    whole_batches: bool = False
    """Whether a step takes a whole batch, so that the last, smaller one of an epoch is dropped."""
    unsloth: bool = True
    """Whether unsloth can open its policy; it has a way of its own to sample for GRPO, which counts
    and seeds nothing of ours.
    """
    rewarded: bool = False
    """Whether the task grades what the model samples; the pool then has the task's columns too."""
    beta: str = "beta"
    """The setting that its implicit reward, beta * log(pi / reference), is scaled by; where that is
    zero, beta is 1."""
    trainer: str
    """`module:function`; see `train_with`."""
    check: Callable[[Any], None]
    """Raises UserError for values of DPOTrainingConfig that the method cannot train with; it looks
    at no other method's settings.
    """

    def reads(self, graded: Sequence[str]) -> tuple[str, ...]:
        """The columns that it needs, where the task grades by the columns `graded`."""
        return tuple(dict.fromkeys((*self.columns, *(graded if self.rewarded else ()))))

    def train_with(self) -> Callable[..., None]:
        """The function that trains: (config, run directory, start, what it reports to) -> None."""
        found: Callable[..., None] = pkgutil.resolve_name(self.trainer)
        return found


def method(name: str) -> Method:
    """A method by its name; UserError for an unknown one."""
    return METHODS[choose("preference method", name, METHODS)]


def _check_beta(t: Any) -> None:
    require(t, "beta", 0 < t.beta < math.inf, "above zero and finite")


def _check_dpo(t: Any) -> None:
    _check_beta(t)
    require(t, "sft_loss_weight", 0 <= t.sft_loss_weight < math.inf, "zero or more")


def _check_kto(t: Any) -> None:
    _check_beta(t)
    rows = 2 * t.effective_batch_size
    fits = t.kl_batch_size > 0 and t.kl_batch_size % 2 == 0 and rows % t.kl_batch_size == 0
    require(t, "kl_batch_size", fits, f"even and divide the {rows} rows of a step")


def _check_grpo(t: Any) -> None:
    require(t, "num_generations", t.num_generations >= 2, "2 or more: answers are compared")
    require(t, "max_completion_length", t.max_completion_length > 0, "above zero")
    require(t, "grpo_temperature", 0 < t.grpo_temperature < math.inf, "above zero and finite")
    require(t, "grpo_beta", 0 <= t.grpo_beta < math.inf, "zero or more")


METHODS = {
    entry.name: entry
    for entry in (
        Method(
            name="dpo",
            columns=PAIRS,
            check=_check_dpo,
            trainer="tuning.training.dpo_training:train",
        ),
        Method(
            name="kto",
            columns=PAIRS,
            unpaired=True,
            check=_check_kto,
            micro_batches=False,
            trainer="tuning.training.kto_training:train",
        ),
        Method(
            name="grpo",
            columns=("prompt",),
            unsloth=False,
            rewarded=True,
            beta="grpo_beta",
            whole_batches=True,
            check=_check_grpo,
            trainer="tuning.training.grpo_training:train",
        ),
    )
}

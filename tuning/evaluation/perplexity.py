"""Perplexity of the responses of a pool: one forward pass, both definitions.

Token-level: exp of the negative log-likelihood summed over all response tokens, divided by their
number. Sample mean: the mean over samples of each sample's own perplexity; long and short answers
weigh the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuning.data.encoding import IGNORED, Encoded
from tuning.runs.progress import tell_part
from tuning.sweetspots.monitor import Measurement

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    Model = PreTrainedModel | PeftModel


LOGITS = 1 << 28
"""Most logits of a batch: 1 GiB of float32, which is held two or three times."""


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """What was measured on a pool."""

    token_level: float
    sample_mean: float
    tokens: int
    samples: int

    @property
    def measurement(self) -> Measurement:
        """As rules and metrics take it: the token-level definition counts."""
        metrics = {"perplexity": self.token_level, "perplexity_sample_mean": self.sample_mean}
        return Measurement(value=self.token_level, metrics=metrics)


class PerplexityProbe:
    """Measures the perplexity of a pool as often as it is asked to."""

    def __init__(self, pool: Sequence[Encoded]) -> None:
        self.pool = pool

    def measure(self, model: Model) -> Measurement:
        """The perplexity of the pool under a model on one device."""
        return measure(model, self.pool).measurement


def measure(model: Model, pool: Sequence[Encoded], *, batch_size: int = 64) -> Perplexity:
    """The perplexity of the responses in `pool` under `model`; dropout is off while it measures."""
    return from_sums(*sums(model, pool, batch_size=batch_size))


def sums(
    model: Model, pool: Sequence[Encoded], *, batch_size: int = 64
) -> tuple[list[float], list[int]]:
    """The summed negative log-likelihood of each response in `pool` in nats, and its tokens; both
    in the order of the pool.

    A batch has at most `batch_size` rows, and fewer where their logits would be more than LOGITS.
    """
    return in_order(part_of_sums(model, pool, batch_size=batch_size))


def in_order(found: Mapping[int, tuple[float, int]]) -> tuple[list[float], list[int]]:
    """What `part_of_sums` found by place, all parts together, as lists."""
    places = range(len(found))
    return [found[place][0] for place in places], [found[place][1] for place in places]


def part_of_sums(
    model: Model, pool: Sequence[Encoded], *, batch_size: int = 64, at: int = 0, of: int = 1
) -> dict[int, tuple[float, int]]:
    """The same by place in the pool, of every `of`th batch of the pool from number `at`. All of
    these parts call the model equally often, as ranks must that hold a part of its weights each.
    """
    import torch

    was_training = model.training
    model.eval()
    batches = _batches(pool, batch_size, model.config.get_text_config().vocab_size)
    own = batches[at::of]
    idle = -(-len(batches) // of) - len(own)
    found: dict[int, tuple[float, int]] = {}
    with torch.no_grad():
        for places in own:
            tell_part("perplexity", len(found) * of, len(pool))
            nll, tokens = _batch(model, [pool[i] for i in places])
            found |= zip(places, zip(nll.tolist(), tokens.tolist(), strict=True), strict=True)
        for places in batches[:idle]:
            _batch(model, [pool[i] for i in places])
    model.train(was_training)
    return found


def _batches(pool: Sequence[Encoded], batch_size: int, vocabulary: int) -> list[list[int]]:
    """Places in the pool by length, in batches."""
    order = sorted(range(len(pool)), key=lambda i: len(pool[i].prompt) + len(pool[i].response))
    found = []
    while order:
        found.append(order[: _fitting(pool, order, batch_size, vocabulary)])
        del order[: len(found[-1])]
    return found


def _fitting(pool: Sequence[Encoded], order: Sequence[int], most: int, vocabulary: int) -> int:
    """How many of the next rows, which grow longer, one batch takes: one at least."""
    count = 1
    while count < min(most, len(order)):
        longest = len(pool[order[count]].ids)
        if (count + 1) * longest * vocabulary > LOGITS:
            break
        count += 1
    return count


def from_sums(losses: Sequence[float], counts: Sequence[int]) -> Perplexity:
    """Both perplexities from each sample's summed negative log-likelihood and response tokens."""
    each = (_exp(loss / count) for loss, count in zip(losses, counts, strict=True))
    return Perplexity(
        token_level=_exp(math.fsum(losses) / sum(counts)),
        sample_mean=math.fsum(each) / len(losses),
        tokens=sum(counts),
        samples=len(losses),
    )


def _batch(model: Model, rows: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed negative log-likelihood and number of response tokens of each row; both of shape
    (rows,).
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.tensor(row.ids) for row in rows]
    labels = [torch.tensor(row.labels) for row in rows]
    mask = [torch.ones_like(sequence) for sequence in ids]
    device = next(model.parameters()).device
    batch, target, attention = (
        pad_sequence(list(part), batch_first=True, padding_value=fill).to(device)
        for part, fill in ((ids, 0), (labels, IGNORED), (mask, 0))
    )
    mixed = device.type == "cuda" and model.dtype == torch.bfloat16
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed):
        logits = model(input_ids=batch, attention_mask=attention, use_cache=False).logits[:, :-1]
    target = target[:, 1:]
    nll = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), target, ignore_index=IGNORED, reduction="none"
    )
    return nll.double().sum(dim=1).cpu(), (target != IGNORED).sum(dim=1).cpu()


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))

"""The loss of a token from its logits; the loop sums it and divides by the tokens that count.

Any callable of this shape can take their place: logits [tokens, vocabulary] in float32 and labels
[tokens], none of them ignored, to losses [tokens].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats; [tokens]."""
    return F.cross_entropy(logits, labels, reduction="none")


def focal(
    logits: torch.Tensor, labels: torch.Tensor, *, alpha: float = 1.0, gamma: float = 2.0
) -> torch.Tensor:
    """alpha * (1 - p)^gamma times the cross-entropy (Lin et al. 2017, eq. 5); [tokens].

    p is the probability of the label. With gamma 0 and alpha 1 it is the cross-entropy.
    """
    nll = cross_entropy(logits, labels)
    # A token that is sure has no gradient; without the bound it would be 0 times infinity.
    doubt = (-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny)
    return alpha * doubt**gamma * nll


def named(name: str, alpha: float, gamma: float) -> LossFunction:
    """The loss of a config."""
    return partial(focal, alpha=alpha, gamma=gamma) if name == "focal" else cross_entropy

"""The loss of a token from its logits. Trainers sum it and divide by the number of tokens with a
loss in the whole optimizer step, however that is split into micro-batches and ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from tuning.engine.config import LossConfig
from tuning.runs.errors import UserError

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""logits [tokens, vocabulary] in float32, labels [tokens] without ignored ones -> [tokens]."""


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood in nats; [tokens]."""
    return F.cross_entropy(logits, labels, reduction="none")


def focal(
    logits: torch.Tensor, labels: torch.Tensor, *, alpha: float = 1.0, gamma: float = 2.0
) -> torch.Tensor:
    """alpha * (1 - p)^gamma times the cross-entropy (Lin et al. 2017, eq. 5); [tokens].

    p is the probability of the label. With alpha 1 and gamma 0 it is the cross-entropy.
    """
    nll = cross_entropy(logits, labels)
    # Without the bound, the gradient at p = 1 would be 0 times infinity.
    doubt = (-torch.expm1(-nll)).clamp_min(torch.finfo(nll.dtype).tiny)
    return alpha * doubt**gamma * nll


def loss_function(config: LossConfig) -> LossFunction:
    """The loss that a config names; UserError if it cannot be imported, and when it is called for a
    function of one's own that does not give a loss a token.
    """
    if config.loss == "focal":
        return partial(focal, alpha=config.focal_alpha, gamma=config.focal_gamma)
    own = config.own_function()
    return cross_entropy if own is None else partial(_a_token, own, config.loss)


def _a_token(
    own: LossFunction, name: str, logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """The losses of a function of one's own. A mean, say, would be divided by the tokens again."""
    losses = own(logits, labels)
    shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
    if shape != tuple(labels.shape):
        raise UserError(
            f"loss {name} returned {shape} for {labels.numel()} tokens; it must return the loss of "
            f"each of them, a tensor of shape {tuple(labels.shape)} (reduction='none')."
        )
    return losses

"""The loss on held-out samples, over all processes, in the rows in which training works."""

from __future__ import annotations

import torch

from tuning.engine import loop, losses, ranks
from tuning.engine.batches import Batches
from tuning.engine.config import PretrainConfig
from tuning.engine.parallel import Spread
from tuning.engine.samples import Samples


class Validation:
    """Mean cross-entropy a token of a fixed set of samples."""

    def __init__(
        self, samples: Samples, training: Batches, spread: Spread, config: PretrainConfig
    ) -> None:
        self.spread = spread
        self.config = config
        self.batches = training.over(samples)

    def measure(self) -> float:
        """Nats a token, the same on all processes, which must all call this."""
        device = next(self.spread.module.parameters()).device
        loss = torch.zeros(1, dtype=torch.float64, device=device)
        counted = 0
        with self.spread.evaluating():
            for step in range(self.batches.steps_per_epoch):
                batch = self.batches.at(step)
                counted += batch.loss_tokens
                for row in self.batches.rows(batch, device):
                    loss += loop.losses_of(self.spread, row, self.config, losses.cross_entropy)[0]
        return ranks.total(loss).item() / max(counted, 1)

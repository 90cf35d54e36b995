"""The loss on held-out samples, over all ranks, packed or batched as in training."""

from __future__ import annotations

import torch

from tuning.engine import loop, losses, ranks
from tuning.engine.batches import Batches
from tuning.engine.parallel import Spread
from tuning.engine.samples import Samples
from tuning.runs.progress import tell_part


class Validation:
    """Mean cross-entropy a token of a fixed set of samples."""

    def __init__(self, samples: Samples, training: Batches, spread: Spread, precision: str) -> None:
        self.spread = spread
        self.precision = precision
        self.batches = training.over(samples)

    def measure(self) -> float:
        """Nats a token, the same on all ranks; all ranks must call this."""
        device = next(self.spread.module.parameters()).device
        loss = torch.zeros(1, dtype=torch.float64, device=device)
        counted = 0
        with self.spread.evaluating():
            for step in range(self.batches.steps_per_epoch):
                if ranks.rank() == 0:
                    tell_part("validation", step, self.batches.steps_per_epoch)
                batch = self.batches.at(step)
                counted += batch.loss_tokens
                for row in self.batches.rows(batch, device):
                    entropy = losses.cross_entropy
                    loss += loop.losses_of(self.spread, row, self.precision, entropy)[0]
        return ranks.total(loss).item() / max(counted, 1)

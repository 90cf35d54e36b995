"""The perplexity of a pool under a model that is spread over all ranks, from packed rows; equal to
`tuning.evaluation.perplexity.measure` of the same model on one process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tuning.data.encoding import Encoded
from tuning.engine import loop, losses, ranks
from tuning.engine.batches import Batches, Row
from tuning.engine.parallel import Spread
from tuning.engine.samples import Rows
from tuning.evaluation.perplexity import Perplexity, from_sums
from tuning.runs.progress import tell_part


def rows_of(pool: Sequence[Encoded]) -> Rows:
    """Prompts with their responses; the loss is on the responses only."""
    return Rows(
        [np.array(row.ids) for row in pool],
        [np.array(row.labels) for row in pool],
    )


class PoolPerplexity:
    """Measures the perplexity of one pool, repeatedly."""

    def __init__(
        self, pool: Sequence[Encoded], training: Batches, spread: Spread, precision: str
    ) -> None:
        """Rows are packed as in `training`; the model computes in `precision`."""
        self.spread = spread
        self.precision = precision
        self.samples = rows_of(pool)
        self.batches = training.over(self.samples, len(pool))

    def measure(self) -> Perplexity:
        """The same on all ranks; all ranks must call this. Dropout is off meanwhile."""
        device = next(self.spread.module.parameters()).device
        sums = torch.zeros(len(self.samples), dtype=torch.float64, device=device)
        with self.spread.evaluating():
            shares = self.batches.at(0).shares
            for at, micro in enumerate(shares):
                if ranks.rank() == 0:
                    tell_part("perplexity", at, len(shares))
                numbers = micro[self.batches.layout.dp_rank]
                row = self.batches.row(numbers, device)
                add = self._adding_to(sums, row, numbers)
                loop.losses_of(self.spread, row, self.precision, add)
        found = from_sums(ranks.total(sums).tolist(), self.samples.loss_tokens.tolist())
        return ranks.from_first(found)

    def _adding_to(
        self, sums: torch.Tensor, row: Row, numbers: Sequence[int]
    ) -> losses.LossFunction:
        """A loss function that adds the loss of each token to the sum of its sample."""
        # A row may end with fill, a document of its own in which no token counts.
        documents = np.array([*numbers, 0])[: len(row.documents.lengths)]
        owners = np.repeat(documents, row.documents.lengths)
        here = torch.from_numpy(owners[self.batches.layout.part(len(owners))]).to(sums.device)
        counted = here[row.kept]

        def add(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            found = losses.cross_entropy(logits, labels)
            sums.index_add_(0, counted, found.double())
            return found

        return add

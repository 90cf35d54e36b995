"""Pre-train a small model on a dataset, with a loss and with an optimizer of your own.

    python examples/pretrain_custom.py
    torchrun --nproc_per_node 2 examples/pretrain_custom.py      # the same model, on two ranks

Writes checkpoints/pretrain_custom/: model/ (for transformers), metrics.jsonl, result.json. Stop it
with Ctrl-C and run it again: it resumes and ends with the same weights. Other settings need
another folder: give one as the first argument.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from tuning.engine import ModelConfig, TrainingArgs, train
from tuning.engine.samples import Sample

VOCABULARY = 64


class Countings:
    """1. The data: anything with a length, items by index, and three arrays of counts.

    An item must depend on its index only; resuming, shuffling and sharding need nothing else. The
    counts are known before any item is read, so that batches can be planned. Here an item counts
    up from a random start in random steps: 5 8 11 14 ...
    """

    def __init__(self, number: int, length: int) -> None:
        self.lengths = np.full(number, length)  # tokens of each item
        self.loss_tokens = self.lengths  # labels that count (are not -100) of each item
        self.squares = self.lengths**2  # what attention costs: documents' lengths, squared

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Sample:
        start, step = np.random.default_rng(index).integers(0, (VOCABULARY, 8))
        tokens = (start + step * np.arange(self.lengths[index] + 1)) % VOCABULARY
        # The label of a token is the one after it; one document fills the item.
        return Sample(tokens[:-1], tokens[1:], np.array([len(tokens) - 1]))


def smoothed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """2. The loss: logits [tokens, vocabulary] and labels [tokens] to losses [tokens].

    The engine takes the mean over all tokens of a step, however the step is split among ranks.
    """
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.05)


def optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """3. The optimizer, from parameter groups with their weight decay.

    Any torch.optim.Optimizer works. The schedule sets the learning rate before each step.
    """
    return torch.optim.NAdam(groups, betas=(0.9, 0.98), decoupled_weight_decay=True)


def main() -> None:
    """4. The arguments: every setting of tuning/run_pretrain.py by its name."""
    args = TrainingArgs(
        model=ModelConfig(
            block_size=32, vocab_size=VOCABULARY, num_layer=2, num_attention_heads=4,
            num_key_value_heads=2, hidden_size=64, intermediate_size=128,
        ),
        output_dir=sys.argv[1] if len(sys.argv) > 1 else "checkpoints/pretrain_custom",
        total_batch_size=1024,  # tokens per optimizer step
        batch_size=16,  # micro-batch: sequences of 32 tokens per forward pass
        max_epochs=1,
        learning_rate=1e-2,
        warmup_steps=10,
        validation_split=0.05,  # fraction of the items to hold out; measured at the end
    )  # fmt: skip
    trained = train(args, samples=Countings(4096, 32), loss_function=smoothed, optimizer=optimizer)
    print(f"{trained.result['train_tokens']:,} tokens; the model is in {trained.model}")


if __name__ == "__main__":
    # Turns what train() raises into one line and an exit code; call main() to see tracebacks.
    from tuning.entry import run

    run(main)

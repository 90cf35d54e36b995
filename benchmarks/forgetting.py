"""What a small model forgets of old tasks while it learns a new one: full fine-tuning beside OSFT, at
the same score on the new task.

    python benchmarks/forgetting.py

A model in the shape of `tiny` learns to add modulo 31 and to reverse six symbols, then only to sort
six symbols. Each fine-tuning is looked at where it first sorts a share of rows, by linear
interpolation between evaluations; the table has what is left of the old tasks there: the share of
rows with every token right, and the loss of a token. Learning rates move both methods more than
anything else, so each method has all of them and is judged by its best one.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuning.engine import loop, model, pretraining, ranks
from tuning.engine.batches import Batches
from tuning.engine.config import EngineConfig, ModelConfig, PretrainConfig
from tuning.engine.losses import cross_entropy
from tuning.engine.parallel import Spread
from tuning.engine.samples import IGNORED, Rows

SEEDS = (0, 1, 2)
SYMBOLS = 16
WIDTH = 4
COPY, REVERSE, NEXT, ADD, FACT, IS, PAD = range(SYMBOLS, SYMBOLS + 7)
LENGTH = 10
NEW_FACTS = 128
SHAPE = ModelConfig(
    block_size=32, vocab_size=SYMBOLS + 7, num_layer=3, num_attention_heads=4,
    num_key_value_heads=4, hidden_size=96, intermediate_size=288,
)  # fmt: skip
OLD = PretrainConfig(
    batch_size=128, max_steps=800, max_lr=3e-3, min_lr=1e-4, warmup_steps=50, precision="fp32",
)  # fmt: skip
NEW = replace(
    OLD, batch_size=64, max_steps=250, min_lr=None, lr_scheduler="constant", warmup_steps=10,
    weight_decay=0.0,
)  # fmt: skip
ENGINE = EngineConfig(debug=True)
RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
TARGETS = (0.5, 0.8, 0.95)
EVERY = 5
HELD_OUT = 256


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning."""

    name: str
    ratio: float | None = None
    """OSFT's share of trained directions; None: full fine-tuning."""
    only_matrices: bool = False
    """Whether embeddings and norms stay as they are."""


METHODS = (
    Method("full"),
    Method("OSFT 0.5", 0.5),
    Method("OSFT 0.25", 0.25),
    Method("full, matrices only", None, True),
    Method("OSFT 0.25, matrices only", 0.25, True),
)


@dataclass(frozen=True)
class Score:
    """Of rows of a task."""

    right: float
    """Share of rows whose answer is right in every token."""
    loss: float
    """Nats a token of the answer."""


Trajectory = list[tuple[int, Score, Score]]
"""(step, new task, old tasks)."""


def rows_of(name, asked, answer):
    n = len(asked)
    tokens = np.concatenate([np.full((n, 1), name), asked, np.full((n, 1), IS), answer], 1)
    labels = tokens.copy()
    labels[:, : WIDTH + 2] = IGNORED
    return tokens, labels


def old_tasks(seed: int, number: int = 0) -> Rows:
    generator = np.random.default_rng([seed, number])
    parts = []
    for op, answer in (
        (COPY, lambda x: x),
        (REVERSE, lambda x: x[:, ::-1]),
        (NEXT, lambda x: (x + 1) % SYMBOLS),
        (
            ADD,
            lambda x: np.stack(
                [(x[:, 0] + x[:, 1]) % SYMBOLS, (x[:, 2] + x[:, 3]) % SYMBOLS, x[:, 0], x[:, 3]], 1
            ),
        ),
    ):
        asked = generator.integers(0, SYMBOLS, (number // 4, WIDTH))
        parts.append(rows_of(op, asked, answer(asked)))
    tokens, labels = (np.concatenate(x) for x in zip(*parts))
    return Rows(list(tokens), list(labels))


def new_task(seed: int, number: int = 0) -> Rows:
    generator = np.random.default_rng([seed, 1, 1])
    asked, answers = generator.integers(0, SYMBOLS, (2, NEW_FACTS, WIDTH))
    return Rows(*map(list, rows_of(FACT, asked, answers)))


def batches_of(rows: Rows, config: PretrainConfig) -> Batches:
    """One row of samples a step."""
    return Batches(
        samples=rows, global_batch=config.batch_size, seed=config.seed, layout=ranks.layout(),
        micro_batch=config.batch_size,
    )  # fmt: skip


@torch.no_grad()
def score(spread: Spread, rows: Rows) -> Score:
    """On all rows at once."""
    row = batches_of(rows, OLD).row(range(len(rows)), torch.device("cpu"))
    kept = (row.labels != IGNORED).nonzero()[:, 0]
    out = spread.model(
        input_ids=row.input_ids, position_ids=row.position_ids, documents=row.documents,
        use_cache=False, logits_to_keep=kept,
    )  # fmt: skip
    logits, labels = out.logits[0].float(), row.labels[kept]
    wrong = torch.zeros(len(rows)).index_add_(
        0, kept // LENGTH, (logits.argmax(1) != labels).float()
    )
    return Score((wrong == 0).float().mean().item(), cross_entropy(logits, labels).mean().item())


def pretrained(seed: int) -> Any:
    """A model that has learnt the old tasks."""
    made = model.build(SHAPE, seed=seed, eos_token_id=PAD, pad_token_id=PAD)
    config = replace(OLD, seed=seed)
    trained(made, config, old_tasks(seed, 50_000))
    return made


def trained(
    made: Any, config: PretrainConfig, rows: Rows, look: Callable[[int, Spread], bool] | None = None
) -> Spread:
    """Train a model in place; `look` is called before the first step and after each, and ends it."""
    spread, _ = pretraining.open_model(lambda: made, lambda: made, config, ENGINE, ranks.layout())
    with tempfile.TemporaryDirectory() as folder:
        loop.train(
            spread, batches_of(rows, config), config, ENGINE, steps=config.max_steps,
            directory=Path(folder),
            after_step=(lambda state: look(state.step, spread)) if look else None,
        )  # fmt: skip
    return spread


def tuned(base: Any, method: Method, rate: float, seed: int) -> Trajectory:
    """Fine-tune a copy of the base on the new task until it has reached every target."""
    made = copy.deepcopy(base)
    if method.only_matrices:
        for name, p in made.named_parameters():
            p.requires_grad_(name.endswith("proj.weight"))
    config = replace(
        NEW, max_lr=rate, seed=seed, osft=method.ratio is not None,
        osft_unfreeze_rank_ratio=method.ratio or 0.0,
    )  # fmt: skip
    held_out = new_task(seed, HELD_OUT), old_tasks(seed + 1000, HELD_OUT)
    found: Trajectory = []

    def look(step: int, spread: Spread) -> bool:
        if step % EVERY == 0:
            found.append((step, score(spread, held_out[0]), score(spread, held_out[1])))
        return found[-1][1].right >= max(TARGETS)

    trained(made, config, new_task(seed, 20_000), look)
    return found


def at(trajectory: Trajectory, target: float) -> tuple[float, Score] | None:
    """The step at which the new task is first so good, and the old tasks there."""
    for (step, new, old), (next_step, next_new, next_old) in zip(
        trajectory, trajectory[1:], strict=False
    ):
        if next_new.right >= target:
            share = (target - new.right) / (next_new.right - new.right)
            return step + share * (next_step - step), Score(
                old.right + share * (next_old.right - old.right),
                old.loss + share * (next_old.loss - old.loss),
            )
    return None


def spread_of(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def main() -> None:
    """Print one table."""
    torch.set_num_threads(1)
    import sys

    seeds = SEEDS[: int(sys.argv[1])] if len(sys.argv) > 1 else SEEDS
    found: dict[tuple[Method, float], list[Trajectory]] = {}
    for seed in seeds:
        t = time.time()
        base = pretrained(seed)
        spread, _ = pretraining.open_model(
            lambda: copy.deepcopy(base), lambda: None, OLD, ENGINE, ranks.layout()
        )
        print("pre", time.time() - t, score(spread, old_tasks(seed, HELD_OUT)), flush=True)
        for method in METHODS:
            for rate in RATES:
                t = time.time()
                p = tuned(base, method, rate, seed)
                found.setdefault((method, rate), []).append(p)
                print(
                    f"{seed} {method.name:26} {rate:.0e} {time.time() - t:5.1f}s last {p[-1][0]:4} B {p[-1][1].right:.3f}",
                    *[
                        (
                            f"@{x}: step {a[0]:.0f} A {a[1].right:.3f} {a[1].loss:.3f}"
                            if (a := at(p, x))
                            else f"@{x}: -"
                        )
                        for x in TARGETS
                    ],
                    flush=True,
                )


if __name__ == "__main__":
    main()

"""How much a small model forgets of four languages while it learns a fifth: full fine-tuning beside
OSFT, at the same score on the new language.

    python benchmarks/forgetting.py

A language is a table of which four symbols may follow each symbol, all alike likely; a text names
its language first. A model in the shape of `tiny` learns four of them, then the fifth alone, with
the same symbols. Scores are nats a token on unseen texts, above log 4, which nobody can beat. Each
fine-tuning ends where the new language is within TARGET of that (interpolated between evaluations),
and the table has what the old ones have lost there: mean and standard deviation over seeds. A lower
learning rate forgets less as well, and takes longer; so the last column has the least that training
the same tensors in full forgets in no more steps, whatever its rate. Embeddings and norms train
too, but in the methods that are said to train matrices only.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tuning.engine import loop, model, ranks, setup
from tuning.engine.batches import Batches
from tuning.engine.config import ComputeConfig, LoopConfig, ModelConfig, OSFTConfig
from tuning.engine.parallel import Spread
from tuning.engine.samples import IGNORED, Rows
from tuning.engine.validation import Validation

SEEDS = (0, 1, 2)
OLD_LANGUAGES, SYMBOLS, CHOICES, LENGTH = 4, 48, 4, 24
NAMES = SYMBOLS
"""The first of the tokens that name a language."""
SHAPE = ModelConfig(
    block_size=LENGTH,
    vocab_size=NAMES + OLD_LANGUAGES + 1,
    num_layer=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    hidden_size=96,
    intermediate_size=288,
)
BEFORE = LoopConfig(
    max_lr=3e-3,
    min_lr=1e-4,
    warmup_steps=50,
    weight_decay=0.5,
    precision="fp32",
)
"""Weight decay takes the initial weights away, as long training does: OSFT trains what is weak."""
AFTER = LoopConfig(lr_scheduler="constant", warmup_steps=10, weight_decay=0.0, precision="fp32")
BATCH_BEFORE, STEPS_BEFORE = 64, 600
BATCH_AFTER, STEPS_AFTER = 32, 300
TARGET, EVERY = 0.2, 5
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Method:
    """A way of fine-tuning."""

    name: str
    ratio: float | None = None
    """OSFT's share of trained directions; None: full fine-tuning."""
    matrices: tuple[str, ...] | None = None
    """All that trains, where not everything does."""
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)


FULL = Method("full", rates=(2e-4, 5e-4, 1e-3, 2e-3))
METHODS = (
    FULL,
    Method("OSFT 0.5", 0.5),
    Method("OSFT 0.25", 0.25),
    replace(FULL, name="full, matrices", matrices=MATRICES),
    Method("OSFT 0.5, matrices", 0.5, MATRICES),
)
Point = tuple[int, float, float]
"""Step, score of the new language, score of the old ones."""


def texts(seed: int, language: int, number: int, draw: int) -> np.ndarray:
    """[number, LENGTH] tokens; another `draw`, other texts."""
    table = np.random.default_rng([seed, language]).random((SYMBOLS, SYMBOLS)).argsort(1)
    generator = np.random.default_rng([seed, language, draw])
    found = np.empty((number, LENGTH), dtype=np.int64)
    found[:, 1] = generator.integers(0, SYMBOLS, number)
    for place in range(2, LENGTH):
        found[:, place] = table[found[:, place - 1], generator.integers(0, CHOICES, number)]
    found[:, 0] = NAMES + language
    return found


def samples(*found: np.ndarray) -> Rows:
    """With the loss on what follows from the symbol before."""
    tokens = np.concatenate(found)
    labels = tokens.copy()
    labels[:, :2] = IGNORED
    return Rows(list(tokens), list(labels))


def old(seed: int, number: int, draw: int) -> Rows:
    """Texts of the four, as many of each."""
    return samples(*(texts(seed, n, number, draw) for n in range(OLD_LANGUAGES)))


def train(
    made: Any,
    config: LoopConfig,
    data: Rows,
    *,
    batch: int,
    steps: int,
    orthogonal: OSFTConfig = setup.DENSE,
    look: Callable[[int, Spread, Batches], bool] = lambda *_: False,
) -> None:
    """Train a model in place; `look` is called before the first step and after each."""
    layout, compute = ranks.layout(), ComputeConfig()
    spread, cost = setup.open_model(
        lambda _: made,
        lambda _: made,
        layout,
        compute,
        osft_config=orthogonal,
        precision=config.precision,
    )
    batches = setup.batches_of(data, batch, layout, compute, cost, seed=config.seed, longest=LENGTH)
    loop.train(
        spread,
        batches,
        config,
        steps=steps,
        directory=None,
        after_step=lambda state: look(state.step, spread, batches),
    )


def tuned(base: Any, method: Method, rate: float, seed: int) -> list[Point]:
    """Fine-tune a copy of the base until it is good enough at the new language."""
    made = copy.deepcopy(base)
    for name, p in made.named_parameters():
        p.requires_grad_(method.matrices is None or name.split(".")[-2] in method.matrices)
    config = replace(AFTER, max_lr=rate, seed=seed)
    orthogonal = OSFTConfig(
        osft=method.ratio is not None,
        osft_unfreeze_rank_ratio=method.ratio or 0.0,
        osft_target_patterns=method.matrices or (),
    )
    unseen = samples(texts(seed, OLD_LANGUAGES, 64, 1)), old(seed, 32, 1)
    found: list[Point] = []

    def look(step: int, spread: Spread, batches: Batches) -> bool:
        if step % EVERY == 0:
            new_score, old_score = (
                Validation(data, batches, spread, config.precision).measure() - math.log(CHOICES)
                for data in unseen
            )
            found.append((step, new_score, old_score))
        return found[-1][1] <= TARGET

    train(
        made,
        config,
        samples(texts(seed, OLD_LANGUAGES, 20_000, 0)),
        batch=BATCH_AFTER,
        steps=STEPS_AFTER,
        orthogonal=orthogonal,
        look=look,
    )
    return found


def at_target(found: list[Point]) -> tuple[float, float] | None:
    """Steps until the new language is good enough, and what the old ones have lost by then."""
    start = found[0][2]
    for (step, new, kept), (next_step, next_new, next_kept) in pairwise(found):
        if next_new <= TARGET:
            share = (new - TARGET) / (new - next_new)
            return step + share * (next_step - step), kept + share * (next_kept - kept) - start
    return None


Key = tuple[Method, float]
"""With its learning rate."""
Ends = list[tuple[float, float] | None]
"""Of each seed: steps, and what the old languages have lost; None where TARGET was missed."""


def measured() -> dict[Key, Ends]:
    """Every method at every rate, over seeds."""
    keys = [(method, rate) for method in METHODS for rate in method.rates]
    found: dict[Key, Ends] = {key: [] for key in keys}
    bar = tqdm(total=len(SEEDS) * (1 + len(keys)), unit="training", mininterval=5)
    for seed in SEEDS:
        base = model.build(SHAPE, seed=seed, eos_token_id=0, pad_token_id=0)
        train(
            base,
            replace(BEFORE, seed=seed),
            old(seed, 10_000, 0),
            batch=BATCH_BEFORE,
            steps=STEPS_BEFORE,
        )
        bar.update()
        for method, rate in keys:
            found[method, rate].append(at_target(tuned(base, method, rate, seed)))
            bar.update()
    bar.close()
    return found


def means(found: dict[Key, Ends]) -> dict[Key, tuple[float, float]]:
    """(steps, loss) over seeds, where all reached the target."""
    return {
        key: (statistics.mean(x for x, _ in whole), statistics.mean(x for _, x in whole))
        for key, ends in found.items()
        if len(whole := [end for end in ends if end]) == len(ends)
    }


def no_slower(key: Key, mean: dict[Key, tuple[float, float]]) -> float | None:
    """The least that training the same tensors in full forgets in no more steps than OSFT."""
    method, _ = key
    rivals = [
        lost
        for (rival, _), (steps, lost) in mean.items()
        if rival.ratio is None and rival.matrices == method.matrices and steps <= mean[key][0]
    ]
    return min(rivals, default=None) if method.ratio is not None else None


def show(found: dict[Key, Ends]) -> None:
    """A line for each method and rate, and what they amount to."""
    mean = means(found)
    print(f"{'method':20} {'rate':>6} {'steps':>6} {'old ones lose':>15} {'full, no slower':>16}")
    for key, ends in found.items():
        method, rate = key
        start = f"{method.name:20} {rate:6.0e}"
        if key not in mean:
            print(f"{start}  target missed with {ends.count(None)} of {len(SEEDS)} seeds")
            continue
        steps, lost = mean[key]
        spread = statistics.stdev(end[1] for end in ends if end)
        rival = no_slower(key, mean)
        least = "" if rival is None else f"{rival:.2f}"
        print(f"{start} {steps:6.0f} {lost:7.2f} ± {spread:5.2f} {least:>16}")
    for what, pairs in (("the same rate", same_rate(mean)), ("no more steps", same_time(mean))):
        less = sum(ours < theirs for ours, theirs in pairs)
        print(f"OSFT forgets less than full fine-tuning with {what}: {less} of {len(pairs)}")


def same_rate(mean: dict[Key, tuple[float, float]]) -> list[tuple[float, float]]:
    """What OSFT and full fine-tuning of the same tensors lose, at each rate of both."""
    return [
        (lost, other)
        for (method, rate), (_, lost) in mean.items()
        for (rival, rate_of_rival), (_, other) in mean.items()
        if method.ratio is not None
        and rival.ratio is None
        and rival.matrices == method.matrices
        and rate_of_rival == rate
    ]


def same_time(mean: dict[Key, tuple[float, float]]) -> list[tuple[float, float]]:
    """What OSFT loses, and the least that full fine-tuning loses in no more steps."""
    pairs = [(lost, no_slower(key, mean)) for key, (_, lost) in mean.items()]
    return [(lost, rival) for lost, rival in pairs if rival is not None]


def main() -> None:
    """Print one table, and what it amounts to."""
    torch.set_num_threads(1)
    print(f"a fifth language, learnt to within {TARGET} nats a token; {len(SEEDS)} seeds")
    show(measured())


if __name__ == "__main__":
    main()

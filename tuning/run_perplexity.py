"""The perplexity of any model on the answers of any dataset.

    python tuning/run_perplexity.py --model tiny --dataset arith --task math
    python tuning/run_perplexity.py --run RUN --sweetspot ppl-2.0 --dataset arith --task math \\
        --pool sft --size 500 --output perplexity.json

Prints both definitions: token-level, exp of the mean loss over all tokens of all answers, which
sweetspots are defined by, and the sample mean, the mean over answers of each one's own perplexity.
Writes nothing but --output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tuning import config as site
from tuning.flags import Parser, add_flags
from tuning.run_inference import add_which, named_model
from tuning.run_tokenize import POOLS
from tuning.runs.errors import choose


def parser() -> Parser:
    """The flags: which model, and which rows."""
    from tuning.phases.options import add_data
    from tuning.weights.config import ModelLoadConfig

    made = Parser(prog="run_perplexity.py", description=__doc__)
    add_which(made)
    add_data(made, model=False)
    made.add_argument(
        "--pool", default="validation", metavar="|".join(POOLS), help="(default: validation)"
    )
    made.add_argument("--size", type=int, help="rows from the start of the pool (default: all)")
    made.add_argument("--batch_size", type=int, default=16, help="rows of a forward pass")
    made.add_argument("--output", type=Path, help="write the figures here too, as JSON")
    add_flags(made, ModelLoadConfig, skip=("backend_train",), title="how --model is loaded")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    args = parser().parse_args(argv)
    from functools import partial

    from tuning.data import train_dataset
    from tuning.phases.evaluate import artifact_named
    from tuning.weights.base import require_base

    pool = choose("pool", args.pool, POOLS)
    entry = site.collections().dataset(args.dataset, args.task)
    base, which = named_model(args)
    train_dataset.require_columns(entry, pool, train_dataset.SFT_COLUMNS, "perplexity")
    rows = train_dataset.rows(entry, pool, args.size)
    require_base(base)
    artifact = artifact_named(base, **which)

    from tuning.data.encoding import encode
    from tuning.evaluation.perplexity import measure
    from tuning.runs import atomic
    from tuning.weights import loading

    where = partial(train_dataset.where, entry, pool)
    encoded = encode(loading.open_tokenizer(artifact), rows, base.max_seq_length, where)
    found = measure(loading.open_model(artifact), encoded, batch_size=max(args.batch_size, 1))
    if args.output is not None:
        atomic.write_json(args.output, asdict(found))
    print(f"token-level perplexity  {found.token_level:.4f}  over {found.tokens:,} tokens")
    print(f"sample mean perplexity  {found.sample_mean:.4f}  over {found.samples:,} answers")
    return 0


if __name__ == "__main__":
    from tuning.entry import run

    run(main)

"""Turn a pool of a chat dataset into token ids with the loss on the responses only.

    python tuning/run_tokenize.py --model tiny --dataset arith --task math --output rows.jsonl
    python tuning/run_tokenize.py --model tiny --dataset arith --task math --pool validation \\
        --size 64 --output held_out.jsonl

Writes --output whole or not at all: one JSON object per line, in the order of the pool,

    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3], "len": 3}

where a label is the token at its position, or -100 in the prompt. The rows are those that
run_sft.py trains on: chat template and --max_seq_length are the model's, and longer rows are cut
off at the end. The engine trains on such files as they are (any other program can write them too):

    python tuning/run_pretrain.py --model_name_or_path tiny --data_path rows.jsonl \\
        --batch_size 32 --max_tokens_per_gpu 4096 --learning_rate 1e-3 --warmup_steps 10
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.data.encoding import IGNORED
from tuning.flags import Parser, add_flags, given
from tuning.runs.errors import UserError, choose
from tuning.runs.interrupt import quits

if TYPE_CHECKING:
    from tuning.data.encoding import Encoded

POOLS = ("sft", "validation")


def parser() -> Parser:
    """The flags: which rows, the model that encodes them, and the output file."""
    from tuning.phases.options import add_data
    from tuning.weights.config import ModelLoadConfig

    made = Parser(prog="run_tokenize.py", description=__doc__)
    add_data(made)
    made.add_argument(
        "--pool", default="sft", metavar="|".join(POOLS), help="which rows (default: sft)"
    )
    made.add_argument("--size", type=int, help="rows from the start of the pool (default: all)")
    made.add_argument("--output", required=True, help="the file to write")
    made.add_argument("--force", action="store_true", help="overwrite an existing file")
    add_flags(made, ModelLoadConfig, skip=("dtype",), title="how the model encodes a row")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Tokenize and write the file; returns the exit code."""
    with quits("stopped; nothing was written"):
        return _write(parser().parse_args(argv))


def _write(args: argparse.Namespace) -> int:
    from tuning.data import train_dataset
    from tuning.training.config_training import model_config
    from tuning.weights.base import require_base
    from tuning.weights.config import ModelLoadConfig

    pool = choose("pool", args.pool, POOLS)
    entry = site.collections().dataset(args.dataset, args.task)
    model = model_config(args.model, given(args, (ModelLoadConfig,)))
    train_dataset.require_columns(entry, pool, train_dataset.SFT_COLUMNS, "SFT")
    rows = train_dataset.rows(entry, pool, args.size)
    require_base(model)
    output = _free(site.expanded(args.output), force=args.force)

    from tqdm import tqdm

    from tuning.data.encoding import encode
    from tuning.runs import atomic
    from tuning.weights import loading
    from tuning.weights.artifact import artifact_of

    bar = tqdm(rows, desc="tokenizing", unit="row", mininterval=1.0, delay=2.0)
    tokenizer = loading.open_tokenizer(artifact_of(model))
    where = partial(train_dataset.where, entry, pool)
    encoded = encode(tokenizer, bar, model.max_seq_length, where)
    lines = [labelled(row) for row in encoded]
    atomic.write_text(output, "".join(json.dumps(row) + "\n" for row in lines))
    print(f"{output}: {_counts(lines)}")
    return 0


def _free(output: Path, *, force: bool) -> Path:
    """Return the file to write; UserError if it exists (without `force`) or cannot be written."""
    if output.is_dir() or not output.name:
        raise UserError(f"--output '{output}' is a folder; name a file in it, such as rows.jsonl")
    if output.exists() and not force:
        raise UserError(f"'{output}' already exists; add --force to overwrite it")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"'{output}' cannot be written ({error.strerror})") from None
    return output


def labelled(row: Encoded) -> dict[str, Any]:
    """A row of the file; the loss is on the response only."""
    return {"input_ids": row.ids, "labels": row.labels, "len": len(row.ids)}


def _counts(rows: Sequence[dict[str, Any]]) -> str:
    """Counts of rows, tokens and loss tokens; the first token of a row is never predicted."""
    tokens = sum(row["len"] for row in rows)
    loss_tokens = sum(len(row["labels"][1:]) - row["labels"][1:].count(IGNORED) for row in rows)
    return f"{len(rows):,} rows, {tokens:,} tokens, {loss_tokens:,} loss tokens"


if __name__ == "__main__":
    from tuning.entry import run

    run(main)

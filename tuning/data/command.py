"""The command line of the scripts that make a dataset: gsm8k_sft.py, gsm8k_pref.py, tuluif_sft.py
and tuluif_pref.py. Each reads one kind of source, and the test set, which no training pool may
share a prompt with; the pools are made anew from all that was read so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuning.data.preparation import folder_of, prepare
from tuning.data.recipes import RECIPES
from tuning.flags import Parser

NONE = "none"


def make(name: str, kind: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Read one kind of source of a dataset; returns the exit code."""
    recipe = RECIPES[name]
    parser = Parser(prog=f"tuning/data/{name}", description=description)
    parser.add_argument(
        "--source",
        default=recipe.sources[kind],
        help="a file (.jsonl, .json, .parquet, .csv), or ORG/NAME[@REVISION][/CONFIG][:SPLIT] of "
        f"the hub (default: {recipe.sources[kind]})",
    )
    parser.add_argument(
        "--test_source",
        default=recipe.sources["test"],
        help=f"the same for the test set, or {NONE} (default: {recipe.sources['test']})",
    )
    parser.add_argument("--force", action="store_true", help="read the sources again")
    args = parser.parse_args(argv)
    sources = {kind: args.source, "test": args.test_source}
    sources = {which: source for which, source in sources.items() if source != NONE}
    print(described(name, prepare(name, recipe, sources, force=args.force)))
    return 0


def described(name: str, manifest: dict[str, Any]) -> str:
    """What was made of a dataset, and what was left out and why."""
    lines = [f"{folder_of(name)}:"]
    for pool, about in manifest["pools"].items():
        lines.append(f"  {pool}: {about['rows']:,} rows, {about['prompts']:,} prompts")
    for kind, about in manifest["sources"].items():
        for reason, left in about["left_out"].items():
            where = f"first {left['first']}"
            lines.append(f"  left out of {kind}: {left['rows']:,} that {reason} ({where})")
    lines += [f"  dropped: {count:,} {why}" for why, count in manifest["dropped"].items()]
    return "\n".join(lines)

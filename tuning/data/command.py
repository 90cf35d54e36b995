"""The command line of the scripts that make a dataset. prepare.py makes one that collections.yaml
describes. gsm8k_sft.py, gsm8k_pref.py, tuluif_sft.py and tuluif_pref.py each read one kind of
source, and the test set, which no training pool may share a prompt with; the pools are made anew
from all that was read so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tuning import config as site
from tuning.data.preparation import folder_of, prepare
from tuning.data.published import recipe_of
from tuning.data.raw import FORMS, absolute
from tuning.data.recipes import RECIPES
from tuning.flags import Parser
from tuning.runs.errors import UserError, choose

NONE = "none"


def make(name: str, kind: str, description: str | None, argv: Sequence[str] | None = None) -> int:
    """Read one kind of source of a dataset; returns the exit code."""
    recipe = RECIPES[name]
    parser = Parser(
        prog=f"tuning/data/{name}_{'sft' if kind == 'sft' else 'pref'}.py", description=description
    )
    before = "default: what was read before, or else"
    parser.add_argument("--source", help=f"{FORMS} ({before} {recipe.sources[kind]})")
    parser.add_argument(
        "--test_source",
        help=f"the same for the test set, or {NONE} ({before} {recipe.sources['test']})",
    )
    parser.add_argument("--force", action="store_true", help="read the sources again")
    args = parser.parse_args(argv)
    sources = {kind: args.source, "test": args.test_source}
    sources = {
        which: source and absolute(source) for which, source in sources.items() if source != NONE
    }
    print(described(name, prepare(name, recipe, sources, force=args.force)))
    return 0


def make_published(description: str | None, argv: Sequence[str] | None = None) -> int:
    """Make a dataset of collections.yaml from the sources that it names there."""
    parser = Parser(prog="tuning/data/prepare.py", description=description)
    parser.add_argument("dataset", help=f"a dataset of collections.yaml, loader {site.PUBLISHED}")
    parser.add_argument("--force", action="store_true", help="read the sources again")
    args = parser.parse_args(argv)
    datasets = site.collections().datasets
    known = [name for name, entry in datasets.items() if entry.loader == site.PUBLISHED]
    if args.dataset in datasets and args.dataset not in known:
        loader = datasets[args.dataset].loader
        made_by = f"; {RECIPES[loader].made_by} make it" if loader in RECIPES else ""
        raise UserError(
            f"dataset '{args.dataset}' is of loader {loader}, not {site.PUBLISHED}{made_by}."
        )
    name = choose(f"dataset of loader {site.PUBLISHED}:", args.dataset, known)
    made = prepare(name, recipe_of(datasets[name]), force=args.force)
    print(described(name, made))
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

"""Tune a training without training: try candidates on this machine, print the table of trials and
the winner, and keep it in the cache, where --autotune finds it.

    python tuning/run_autotune.py --for sft --model tiny --dataset arith --task math \\
        --train_size 500
    python tuning/run_autotune.py --for pretrain --preset gpt-0.25b --use_mock_data
    python tuning/run_autotune.py --model-name FOLDER --dataset-path rows.jsonl \\
        --target-global-batch-size 32 --num-gpus 1 --strategy-type bayesian

--for is sft (default), dpo, kto, grpo or pretrain; everything else is what that command takes
(--for sft --help lists it), or the short form in the last example. Writes choice.json,
history.jsonl and autotune.svg to TUNING_HOME/cache/autotune/{key}/.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.flags import Parser
from tuning.methods import METHODS
from tuning.runs import atomic, provenance
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import digest

if TYPE_CHECKING:
    from tuning.autotune.config import AutotuneRunConfig
    from tuning.phases.work import Work

KINDS = ("sft", *METHODS, "pretrain")
TASK = "math"
"""Of --dataset_path: it does not matter to memory and speed, but rewards are graded by it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Tune; 0 if something was found that is safe to use, 1 if not."""
    words = list(sys.argv[1:] if argv is None else argv)
    kind, rest = _kind(words)
    if kind is None and (not rest or {"-h", "--help"} & set(rest)):
        _Front().parse_args(["--help"])
    kind = kind or KINDS[0]
    args = parser(kind).parse_args(rest)
    site.require_writable_home()
    config = described(kind, args)

    from tuning.phases.train import use_devices
    from tuning.runs import interrupt

    interrupt.install()
    use_devices(config.processes)
    return _estimate(config) if args.estimate else _tune(config)


class _Front(Parser):
    """What is shown before it is known what is tuned."""

    def __init__(self) -> None:
        super().__init__(prog="run_autotune.py", description=__doc__)
        kinds = "|".join(KINDS)
        self.add_argument("--for", metavar=kinds, help=f"what to tune (default: {KINDS[0]})")


def _kind(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """What to tune, and the other words."""
    rest = list(words)
    for place, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if name == "--for":
            value = value if equals else (rest[place + 1 : place + 2] or [""])[0]
            del rest[place : place + (1 if equals else 2)]
            return choose("--for", value, KINDS), rest
    return None, rest


def parser(kind: str) -> Parser:
    """The flags of the command that is tuned, those that it requires optional, and the short forms.

    The command's own check says what is lacking.
    """
    from tuning import run_dpo, run_pretrain, run_sft

    module: Any = {"sft": run_sft, "pretrain": run_pretrain}.get(kind, run_dpo)
    made: Parser = module.parser()
    made.prog = f"run_autotune.py --for {kind}"
    for action in made._actions:
        action.required = False
    group = made.add_argument_group("short forms")
    group.add_argument("--model_name", help="as --model (pre-training: --model_name_or_path)")
    group.add_argument("--dataset_path", type=Path, help="a JSONL file of rows, all of them")
    group.add_argument("--target_global_batch_size", type=int, help="examples of a step, in all")
    group.add_argument("--num_gpus", type=int, help="ranks that train it (default: all GPUs)")
    group.add_argument("--strategy_type", help="as --strategy")
    made.add_argument(
        "--estimate",
        action="store_true",
        help="only print the memory and the time that the cost model expects; try nothing",
    )
    return made


def _short_forms(kind: str, args: argparse.Namespace) -> None:
    """Put the values of the short forms where the command looks for them."""
    args.autotune = args.do_training = True
    if args.strategy_type:
        args.strategy = args.strategy_type
    if kind == "pretrain":
        _for_pretraining(args)
        return
    if kind != "sft":
        args.pft_method = kind
    args.model = args.model or args.model_name
    if args.dataset_path:
        args.task = args.task or TASK
        args.dataset, size = _registered(args.dataset_path, kind, args.task)
        args.train_size = args.train_size or size
    if args.target_global_batch_size:
        args.effective_batch_size = args.target_global_batch_size
    for name in ("model", "dataset", "task"):
        if not getattr(args, name):
            raise UserError(f"--{name} is missing. See --for {kind} --help.")
    if kind == "sft" and args.train_size is None:
        raise UserError("--train_size is missing.")


def _for_pretraining(args: argparse.Namespace) -> None:
    args.model_name_or_path = args.model_name_or_path or args.model_name
    if args.dataset_path:
        args.data_path = str(args.dataset_path)
    if args.target_global_batch_size is None:
        return
    if getattr(args, "max_tokens_per_gpu", None) is not None:
        args.batch_size = args.target_global_batch_size
        return
    length = getattr(args, "seq_len", None) or getattr(args, "block_size", None)
    if length is None:
        raise UserError("--target_global_batch_size counts sequences; give --block_size as well.")
    args.total_batch_size = args.target_global_batch_size * int(length)


def _registered(path: Path, kind: str, task: str) -> tuple[str, int]:
    """Name a file in a collections.yaml of its own; the name of the dataset and its rows."""
    import yaml

    lines = [line for line in _text(path).splitlines() if line.strip()]
    held_out = 1 if kind == "sft" else 0
    if len(lines) <= held_out:
        raise UserError(f"'{path}' has {len(lines)} rows; give at least {held_out + 1}.")
    folder = site.home() / "cache" / "autotune" / "datasets" / digest(lines)[:16]
    pools = {"sft": lines[:-1], "validation": lines[-1:]} if held_out else {"preference": lines}
    for pool, rows in pools.items():
        atomic.write_text(folder / f"{pool}.jsonl", "".join(f"{row}\n" for row in rows))
    name = "rows"
    collections = site.collections()
    content = yaml.safe_load(collections.path.read_text(encoding="utf-8"))
    for dataset in content["datasets"].values():
        for pool in ("sft", "preference", "validation", "test"):
            if dataset.get(pool):
                dataset[pool] = str(site.expanded(str(collections.path.parent / dataset[pool])))
    for model in content["models"].values():
        if model.get("path"):
            model["path"] = str(site.expanded(str(collections.path.parent / model["path"])))
    files = {pool: str(folder / f"{pool}.jsonl") for pool in pools}
    content["datasets"][name] = {"loader": "jsonl", **files}
    content["tasks"][collections.task(task)]["datasets"].append(name)
    atomic.write_text(folder / "collections.yaml", json.dumps(content))
    os.environ["TUNING_COLLECTIONS"] = str(folder / "collections.yaml")
    return name, len(lines) - held_out


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' cannot be read ({error}).") from None


def described(kind: str, args: argparse.Namespace) -> AutotuneRunConfig:
    """The search that a command line describes."""
    _short_forms(kind, args)
    from tuning import run_dpo, run_pretrain, run_sft
    from tuning.autotune.config import AutotuneRunConfig
    from tuning.phases.tune import started
    from tuning.training.config import require_shared
    from tuning.training.start import start_of
    from tuning.weights.base import require_base

    serves = kind if kind in ("sft", "pretrain") else "pft"
    module: Any = {"sft": run_sft, "pretrain": run_pretrain, "pft": run_dpo}[serves]
    work: Work = module.described(args)
    if serves != "pretrain":
        require_base(work.run.model)
    more = started(start_of(work.run)) if serves == "pft" else {}
    everywhere = serves == "pretrain" or work.run.trainer == "engine"
    processes = _processes(args.num_gpus, everywhere=everywhere)
    if serves != "pretrain":
        require_shared(work.run, processes)
    assert work.options.autotune is not None
    return AutotuneRunConfig.of(
        serves,
        work.run,
        work.options.autotune,
        processes=processes,
        **more,
    )


def _processes(asked: int | None, *, everywhere: bool) -> int:
    """The processes to tune for; `everywhere`: one for each GPU unless it is told otherwise."""
    gpus = len(provenance.gpus())
    number = asked if asked is not None else (max(1, gpus) if everywhere else 1)
    if number < 1:
        raise UserError(f"num_gpus is {number}; it must be at least 1.")
    if number > gpus > 0:
        raise UserError(f"num_gpus is {number}; this machine has {gpus}.")
    return number


def _tune(config: AutotuneRunConfig) -> int:
    """Search, with a bar on the terminal; print the table, and where the picture is."""
    from tqdm import tqdm

    from tuning.autotune import cache, phase, picture
    from tuning.autotune.choice import table, winner_of

    most = config.search.max_iterations
    with tqdm(total=most, desc="tuning", unit="trial", disable=None) as bar:

        def tell(at: int, of: int, note: str) -> None:
            bar.n = max(0, at - 1)
            bar.set_postfix_str(note)

        found = phase.choose(config, tell)
    winner = winner_of(found.choice)
    if found.observations:
        print(table(found))
    drawn = picture.drawn(found.observations, found.scorer, winner)
    folder = cache.root() / found.choice.key
    if drawn and winner:
        atomic.write_text(folder / phase.PICTURE, drawn)
        print(f"picture: {folder / phase.PICTURE}")
    if winner is None:
        print(f"error: {found.choice.why}", file=sys.stderr)
        return 1
    print(f"winner ({found.choice.source}): {winner}")
    if found.choice.prediction_error:
        print(f"predictions: {found.choice.prediction_error}")
    return 0


def _estimate(config: AutotuneRunConfig) -> int:
    """Print what is expected of each candidate."""
    from tuning.autotune import phase
    from tuning.autotune.choice import aligned

    expected, scorer = phase.estimate(config)
    gib = 2**30
    rows = [("candidate", "memory", "+-", "of capacity", "step", "fits")]
    for candidate, p in expected.items():
        fits = "yes" if p.fits else "no" if p.hopeless else "perhaps"
        share = p.peak_bytes / scorer.capacity
        memory, error = f"{p.peak_bytes / gib:.2f} GiB", f"{p.peak_error / gib:.2f}"
        rows.append(
            (str(candidate), memory, error, f"{share:.0%}", f"{p.step_seconds:.3g} s", fits)
        )
    print(aligned(rows))
    return 0


if __name__ == "__main__":
    from tuning.entry import run

    run(main)

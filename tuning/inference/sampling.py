"""k answers to every test prompt, into responses.jsonl.

Answers are a function of the run's hash and the places of their prompts. They are written as the
generator finishes them, and stand in the order of the prompts in the end. An inference that was
stopped anywhere continues with what is not there, to the same file.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from tuning.data import train_dataset
from tuning.evaluation.config import EvaluationRunConfig
from tuning.inference.generator import Generator, Messages
from tuning.runs import atomic, interrupt
from tuning.runs.errors import StageFailed
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory, read_lines
from tuning.tasks.base import BEYOND
from tuning.tasks.registry import task


def sample(
    directory: RunDirectory,
    config: EvaluationRunConfig,
    generator: Generator,
    first: int | None = None,
) -> None:
    """Answer the first `prompts` rows of the test pool; raises Interrupted between portions if
    asked to stop.

    `first`: only so many of them for now, and what is answered together with them. The answers are
    those that a whole inference gives.
    """
    from tqdm import tqdm

    rows = config.data.rows("test", config.sampling.prompts)
    asked = _asked(config, rows)
    columns = task(config.task).columns
    path = directory.path / "responses.jsonl"
    done = _keep_whole_lines(path, len(rows), config.sampling.n_samples)
    room = room_for(generator, asked, config.sampling.max_new_tokens, "test")
    wanted = set(range(len(rows) if first is None else min(first, len(rows))))
    skipped = set(range(len(rows))) - wanted
    of, begun = len(wanted), len(done & wanted)
    with tqdm(initial=begun, total=of, desc="inference", mininterval=2.0) as bar:
        directory.progress("infer", begun, of)
        portions = generator.answers(asked, config.sampling, config.hash, frozenset(done | skipped))
        with contextlib.closing(portions):
            for portion in portions:
                new = {place: texts for place, texts in portion if place not in done}
                _append(path, [_line(n, rows[n], new[n], columns, room[n]) for n in sorted(new)])
                done |= new.keys()
                if new:
                    bar.update(len(new.keys() & wanted))
                    directory.progress("infer", len(done & wanted), of)
                if done >= wanted:
                    break
                interrupt.check()
    if missing := len(wanted - done):
        raise StageFailed(f"{missing} of {of} prompts got no answer.")
    _order(path)
    directory.progress("infer", of, of, final=True)


def _asked(config: EvaluationRunConfig, rows: list[dict[str, Any]]) -> list[Messages]:
    """The prompts as the model gets them: worked examples as turns before what is asked, after a
    system message.
    """
    shown: Messages = []
    if config.examples is not None:
        for row in config.examples.rows("sft", config.sampling.few_shot):
            shown += [m for m in row["prompt"] if m["role"] != "system"] + row["completion"]
    prompts = []
    for row in rows:
        own = row["prompt"][0]["role"] == "system"
        prompts.append([*row["prompt"][:own], *shown, *row["prompt"][own:]])
    return prompts


def room_for(generator: Generator, prompts: list[Messages], wanted: int, pool: str) -> list[int]:
    """Tokens that the context leaves for each answer; says how many prompts of a pool leave too
    few.
    """
    room = generator.room(prompts)
    beyond = sum(left <= 0 for left in room)
    tight = sum(0 < left < wanted for left in room)
    if beyond:
        logger.warning(
            f"{beyond} of {len(room)} {pool} prompts are longer than the context of the model, by "
            f"up to {-min(room)} tokens: the answers to them mean nothing"
        )
    if tight:
        logger.warning(
            f"{tight} of {len(room)} {pool} prompts leave less than max_new_tokens ({wanted}) of "
            f"the context of the model, one of them {min(left for left in room if left > 0)}"
        )
    return room


def _line(
    index: int,
    row: dict[str, Any],
    answers: list[str],
    columns: tuple[str, ...],
    room: int,
) -> dict[str, Any]:
    """The line of a prompt, with the `columns` that its responses are graded by."""
    return {
        "index": index,
        "prompt": train_dataset.prompt_text(row),
        **{column: row[column] for column in columns},
        **({BEYOND: True} if room <= 0 else {}),
        "responses": answers,
    }


def _append(path: Path, lines: list[dict[str, Any]]) -> None:
    if lines:
        with path.open("a", encoding="utf-8") as file:
            file.write(_text(lines))
            file.flush()
            os.fsync(file.fileno())


def _text(lines: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _keep_whole_lines(path: Path, prompts: int, samples: int) -> set[int]:
    """Drop what is cut or was not written by an inference like this one; the places of the rest."""
    if not path.exists():
        return set()
    kept: dict[int, dict[str, Any]] = {}
    for line in read_lines(path):
        place, answers = line.get("index"), line.get("responses")
        whole = isinstance(answers, list) and len(answers) == samples
        if whole and isinstance(place, int) and 0 <= place < prompts:
            kept.setdefault(place, line)
    atomic.write_text(path, _text(list(kept.values())))
    return set(kept)


def _order(path: Path) -> None:
    """Put the lines in the order of the prompts, where they are not."""
    lines = read_lines(path)
    ordered = sorted(lines, key=lambda line: line["index"])
    if lines != ordered:
        atomic.write_text(path, _text(ordered))

"""k answers to every test prompt, in chunks of fixed composition, into responses.jsonl.

A chunk is as large as the generator says; its answers are a function of the run's hash and its
place, and are written whole or not at all. An inference that was stopped anywhere continues with
the first chunk that is not there, to the same file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tuning.data import train_dataset
from tuning.evaluation.config import EvaluationRunConfig
from tuning.inference.generator import Generator, Messages
from tuning.runs import atomic, interrupt
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory, read_lines
from tuning.tasks.base import BEYOND
from tuning.tasks.registry import task


def sample(directory: RunDirectory, config: EvaluationRunConfig, generator: Generator) -> None:
    """Answer the first `prompts` rows of the test pool; raises Interrupted between chunks if asked
    to stop.
    """
    from tqdm import tqdm

    rows = config.data.rows("test", config.sampling.prompts)
    asked = _asked(config, rows)
    columns = task(config.task).columns
    size = generator.chunk_size(config.sampling)
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    path = directory.path / "responses.jsonl"
    done = _keep_whole_chunks(path, [len(chunk) for chunk in chunks])
    room = _room(generator, asked, config.sampling.max_new_tokens)
    with tqdm(initial=done, total=len(chunks), desc="inference", mininterval=2.0) as bar:
        for number in range(done, len(chunks)):
            interrupt.check()
            directory.progress("infer", number, len(chunks))
            first = number * size
            prompts = asked[first : first + len(chunks[number])]
            answers = generator.generate(prompts, config.sampling, config.hash, first)
            lines = [
                _line(first + i, row, texts, columns, room[first + i])
                for i, (row, texts) in enumerate(zip(chunks[number], answers, strict=True))
            ]
            _append(path, lines)
            bar.update(1)
    directory.progress("infer", len(chunks), len(chunks), final=True)


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


def _room(generator: Generator, prompts: list[Messages], wanted: int) -> list[int]:
    """Tokens that the context leaves for each answer; says how many prompts leave too few."""
    room = generator.room(prompts)
    beyond = sum(left <= 0 for left in room)
    tight = sum(0 < left < wanted for left in room)
    if beyond:
        logger.warning(
            f"{beyond} of {len(room)} test prompts are longer than the context of the model, by up "
            f"to {-min(room)} tokens: the answers to them mean nothing"
        )
    if tight:
        logger.warning(
            f"{tight} of {len(room)} test prompts leave less than max_new_tokens ({wanted}) of the "
            f"context of the model, one of them {min(left for left in room if left > 0)}"
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
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())


def _keep_whole_chunks(path: Path, sizes: list[int]) -> int:
    """Cut the file after its last whole chunk; returns how many chunks it holds."""
    if not path.exists():
        return 0
    rows = read_lines(path)
    whole, kept = 0, 0
    for size in sizes:
        if kept + size > len(rows):
            break
        whole, kept = whole + 1, kept + size
    atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in rows[:kept]))
    return whole

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
from tuning.inference.generator import Generator
from tuning.runs import atomic, interrupt
from tuning.runs.rundir import RunDirectory, read_lines
from tuning.tasks.registry import task


def sample(directory: RunDirectory, config: EvaluationRunConfig, generator: Generator) -> None:
    """Answer the first `prompts` rows of the test pool; raises Interrupted between chunks if asked
    to stop.
    """
    from tqdm import tqdm

    rows = config.data.rows("test", config.sampling.prompts)
    columns = task(config.task).columns
    size = generator.chunk_size(config.sampling)
    chunks = [rows[i : i + size] for i in range(0, len(rows), size)]
    path = directory.path / "responses.jsonl"
    done = _keep_whole_chunks(path, [len(chunk) for chunk in chunks])
    with tqdm(initial=done, total=len(chunks), desc="inference", mininterval=2.0) as bar:
        for number in range(done, len(chunks)):
            interrupt.check()
            directory.progress("infer", number, len(chunks))
            prompts, first = [row["prompt"] for row in chunks[number]], number * size
            answers = generator.generate(prompts, config.sampling, config.hash, first)
            _append(path, first, chunks[number], answers, columns)
            bar.update(1)
    directory.progress("infer", len(chunks), len(chunks), final=True)


def _append(
    path: Path,
    start: int,
    rows: list[dict[str, Any]],
    answers: list[list[str]],
    columns: tuple[str, ...],
) -> None:
    """Write a line a prompt, with the `columns` that its responses are graded by."""
    lines = [
        json.dumps(
            {
                "index": start + i,
                "prompt": train_dataset.prompt_text(row),
                **{column: row[column] for column in columns},
                "responses": texts,
            }
        )
        for i, (row, texts) in enumerate(zip(rows, answers, strict=True))
    ]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
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

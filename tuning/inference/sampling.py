"""k answers to every test prompt, in batches of fixed composition, into responses.jsonl.

A batch is seeded from the run's hash and its own number and is written whole or not at all. An
inference that was stopped anywhere continues with the first batch that is not there, to the same
file.
"""

from __future__ import annotations

import hashlib
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


def batch_seed(run_hash: str, sampling_seed: int, batch: int) -> int:
    """A seed of 63 bits that only this batch of this run has."""
    text = f"{run_hash}:{sampling_seed}:{batch}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def sample(directory: RunDirectory, config: EvaluationRunConfig, generator: Generator) -> None:
    """Answer the first `prompts` rows of the test pool; raises Interrupted between batches if
    asked.
    """
    from tqdm import tqdm

    rows = config.data.rows("test", config.sampling.prompts)
    columns = task(config.task).columns
    size = config.sampling.batch_size
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    path = directory.path / "responses.jsonl"
    first = _keep_whole_batches(path, [len(batch) for batch in batches])
    with tqdm(initial=first, total=len(batches), desc="inference", mininterval=2.0) as bar:
        for number in range(first, len(batches)):
            interrupt.check()
            directory.progress("infer", number, len(batches))
            prompts = [row["prompt"] for row in batches[number]]
            seed = batch_seed(config.hash, config.sampling.sampling_seed, number)
            answers = generator.generate(prompts, config.sampling, seed)
            _append(path, number * size, batches[number], answers, columns)
            bar.update(1)
    directory.progress("infer", len(batches), len(batches), final=True)


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


def _keep_whole_batches(path: Path, sizes: list[int]) -> int:
    """Cut the file behind its last whole batch; returns how many batches it holds."""
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

"""From responses.jsonl to scores.json: grades, pass@k, intervals. Needs no model, no dataset and no
torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuning.evaluation.config import EvaluationRunConfig
from tuning.evaluation.intervals import Interval, mean_interval, ratio_interval
from tuning.evaluation.pass_at_k import per_prompt, per_prompt_ranked
from tuning.runs import atomic
from tuning.runs.errors import StageFailed
from tuning.runs.rundir import RunDirectory, read_lines
from tuning.tasks.base import BEYOND, Grade
from tuning.tasks.registry import task


def score(directory: RunDirectory, config: EvaluationRunConfig) -> dict[str, Any]:
    """Grade every response of a finished inference and write scores.json."""
    rows = _answered(directory.path / "responses.jsonl", config)
    return _scored(directory, config, rows, "scores.json")


def score_first(directory: RunDirectory, config: EvaluationRunConfig, first: int) -> dict[str, Any]:
    """Grade the responses to the first prompts and write `first_scores()`."""
    rows = _answered(directory.path / "responses.jsonl", config)
    rows = [row for row in rows if row["index"] < first]
    return _scored(directory, config, rows, first_scores(first))


def first_scores(first: int) -> str:
    """The file of the scores on the first prompts alone."""
    return f"scores-first-{first}.json"


def _scored(
    directory: RunDirectory, config: EvaluationRunConfig, rows: list[dict[str, Any]], file: str
) -> dict[str, Any]:
    grade = task(config.task).grade
    grades = [[grade(text, row) for text in row["responses"]] for row in rows]
    scores = {
        "run_name": directory.name,
        "artifact": config.artifact,
        "task": config.task,
        "dataset": config.dataset,
        "hash": config.hash,
        **measured(grades, config.sampling.k_values, ranked=config.sampling.decoding == "beam"),
        "prompts_beyond_context": sum(BEYOND in row for row in rows),
    }
    atomic.write_json(directory.path / file, scores)
    return scores


def measured(
    grades: Sequence[Sequence[Grade]], k_values: Sequence[int] = (), *, ranked: bool = False
) -> dict[str, Any]:
    """What the grades of all prompts say, each of which has as many answers: pass@k, further
    measures, right answers a prompt, and `marks`: of each answer to a prompt a 1 if it is right.

    `ranked`: the answers stand best first, as those of a beam search; then pass@k is the share of
    prompts with a right one among the k best, `first_right` has its rank for each prompt, and the
    further measures are those of the best answers.
    """
    correct = [sum(entry.right for entry in of_prompt) for of_prompt in grades]
    first = [next((n for n, one in enumerate(each) if one.right), None) for each in grades]
    samples = len(grades[0])

    def at(k: int) -> dict[str, float]:
        found = per_prompt_ranked(first, k) if ranked else per_prompt(correct, samples, k)
        return _rounded(mean_interval(found))

    return {
        "prompts": len(grades),
        "samples": samples,
        "pass_at_k": {str(k): at(k) for k in sorted({1, *k_values})},
        "correct": correct,
        "marks": ["".join(str(int(one.right)) for one in of_prompt) for of_prompt in grades],
        **({"first_right": first} if ranked else {}),
        "parts": _parts([each[:1] for each in grades] if ranked else grades),
    }


def _answered(path: Path, config: EvaluationRunConfig) -> list[dict[str, Any]]:
    """The lines of responses.jsonl; StageFailed for one that an inference does not write."""
    rows = read_lines(path)
    again = "infer again with --do_inference --force"
    if len(rows) != path.read_bytes().count(b"\n"):
        raise StageFailed(f"'{path}' is damaged in line {len(rows) + 1}; {again}.")
    needed, samples = {"responses", *task(config.task).columns}, config.sampling.n_samples
    for number, row in enumerate(rows, 1):
        whole = row.keys() >= needed and isinstance(row["responses"], list)
        if not whole or [type(text) for text in row["responses"]] != [str] * samples:
            raise StageFailed(f"'{path}' is damaged in line {number}; {again}.")
    return rows


def _parts(grades: Sequence[Sequence[Grade]]) -> dict[str, dict[str, float]]:
    """The mean of each part over all responses that have it, with its interval over prompts."""
    names = dict.fromkeys(name for of_prompt in grades for one in of_prompt for name in one.parts)
    found = {}
    for name in names:
        answers = [[_several(one.parts.get(name, ())) for one in prompt] for prompt in grades]
        sums = [math.fsum(map(math.fsum, prompt)) for prompt in answers]
        counts = [sum(map(len, prompt)) for prompt in answers]
        found[name] = _rounded(ratio_interval(sums, counts))
    return found


def _several(value: float | bool | Sequence[bool]) -> Sequence[float]:
    return (value,) if isinstance(value, bool | int | float) else value


def _rounded(interval: Interval) -> dict[str, float]:
    return {
        "estimate": round(interval.estimate, 6),
        "low": round(interval.low, 6),
        "high": round(interval.high, 6),
    }

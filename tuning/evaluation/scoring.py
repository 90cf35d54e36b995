"""From responses.jsonl to scores.json: exact checking, pass@k, intervals. Needs no model and no
torch.
"""

from __future__ import annotations

from typing import Any

from tuning.evaluation.config import EvaluationRunConfig
from tuning.evaluation.intervals import Interval, mean_interval
from tuning.evaluation.pass_at_k import per_prompt
from tuning.runs import atomic
from tuning.runs.rundir import RunDirectory, read_lines
from tuning.tasks.base import task


def score(directory: RunDirectory, config: EvaluationRunConfig) -> dict[str, Any]:
    """Check every response of a finished inference and write scores.json."""
    rows = read_lines(directory.path / "responses.jsonl")
    check = task(config.task).check
    correct = [sum(check(text, row["answer"]) for text in row["responses"]) for row in rows]
    samples = config.sampling.n_samples
    ks = sorted({1, *config.sampling.k_values})
    scores = {
        "run_name": directory.name,
        "artifact": config.artifact,
        "task": config.task,
        "dataset": config.dataset,
        "hash": config.hash,
        "prompts": len(rows),
        "samples": samples,
        "pass_at_k": {str(k): _rounded(mean_interval(per_prompt(correct, samples, k))) for k in ks},
        "correct": correct,
    }
    atomic.write_json(directory.path / "scores.json", scores)
    return scores


def _rounded(interval: Interval) -> dict[str, float]:
    return {
        "estimate": round(interval.estimate, 6),
        "low": round(interval.low, 6),
        "high": round(interval.high, 6),
    }

"""A search of a small pre-training on random tokens, which needs no data and no base."""

from __future__ import annotations

import os
from typing import Any

from tuning.autotune.config import AutotuneConfig, AutotuneRunConfig
from tuning.autotune.space import Candidate
from tuning.autotune.trial import Request
from tuning.engine.run_config import PretrainRunConfig, experiment_config

SHAPE = {
    "num_layer": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
    "intermediate_size": 64, "vocab_size": 300, "block_size": 32,
}  # fmt: skip


def pretraining(**values: Any) -> PretrainRunConfig:
    """8 sequences of 32 tokens a step."""
    given = {"use_mock_data": True, "total_batch_size": 256, "max_steps": 4, **SHAPE, **values}
    return experiment_config("small", given)


def search_of(run: Any = None, serves: str = "pretrain", **settings: Any) -> AutotuneRunConfig:
    """The search that serves a run; by default in at most three trials of three steps."""
    search = {"max_iterations": 3, "profile_steps": 3, "time_budget": 120.0, **settings}
    return AutotuneRunConfig.of(serves, run or pretraining(), AutotuneConfig(**search))


def candidate(**values: Any) -> Candidate:
    """One that can be tried anywhere."""
    return Candidate(**{"micro_batch": 2, "precision": "fp32", **values})


def request_of(parent: int | None = None, **settings: Any) -> Request:
    """A trial of that candidate."""
    return Request(
        config=search_of(**settings),
        candidate=candidate().to_json(),
        files={},
        rows=8,
        steps=3,
        seconds=60.0,
        parent=parent or os.getpid(),
    )

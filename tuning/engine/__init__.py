"""The training engine: a loop on stock Hugging Face classes, from the command line
(tuning/run_pretrain.py) and for programs of your own:

    from tuning.engine import PretrainingConfig, TrainingArgs, train

    args = TrainingArgs(
        model_name_or_path="org/model", data_path="documents.jsonl", output_dir="checkpoints",
        batch_size=128, max_tokens_per_gpu=40000,
        pretraining_config=PretrainingConfig(block_size=4096),
    )
    train(args)

What is named here is imported when it is asked for; nothing heavy before `train()` is called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuning.engine.api import PretrainingConfig, TrainingArgs, TrainingResult, train
    from tuning.engine.config import ModelConfig

__all__ = ["ModelConfig", "PretrainingConfig", "TrainingArgs", "TrainingResult", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    owner = import_module(f"{__name__}.{'config' if name == 'ModelConfig' else 'api'}")
    return getattr(owner, name)

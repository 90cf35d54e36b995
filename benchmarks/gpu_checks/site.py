"""Where steps work: a folder with a TUNING_HOME and collections of its own, how large things are on
a GPU and without one, and the entry points of the project as a user starts them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_checks import rows
from tuning.runs.rundir import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
MODEL = "smoke"
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
}
DATA = ("--dataset", "arith", "--task", "math")
SIZES = {
    "cuda": {"sft": 512, "dpo": 256, "kto": 256, "grpo": 32, "prompts": 256},
    "cpu": {"sft": 96, "dpo": 16, "kto": 16, "grpo": 4, "prompts": 4},
}
"""Examples of a training, and prompts that are answered."""
_SMALL = {"lora_r": 8, "lora_alpha": 8, "max_seq_length": 192}
_SETTINGS: dict[str, dict[str, Any]] = {
    "cuda": {
        "pretrain": {
            "preset": "tiny",
            "num_layer": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "hidden_size": 512,
            "intermediate_size": 1536,
            "max_steps": 200,
            "max_lr": 1e-3,
            "total_batch_size": 8192,
            "micro_batch_size": 64,
            "precision": "auto",
        },
        "sft": {
            "effective_batch_size": 16,
            "micro_batch_size": 8,
            "eval_steps": 16,
            "lora_r": 16,
            "save_steps": 16,
        },
        "pft": {"effective_batch_size": 16, "micro_batch_size": 8, "lora_r": 16},
        "grpo": {"effective_batch_size": 8, "num_generations": 4, "max_completion_length": 48},
        "evaluation": {"n_samples": 4, "k_values": [1, 4], "max_new_tokens": 64, "batch_size": 64},
    },
    "cpu": {
        "pretrain": {
            "preset": "tiny",
            # Heads of 32, which vLLM's attention on a CPU takes; of tiny's 24 it does not.
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "max_steps": 20,
            "total_batch_size": 1024,
            "micro_batch_size": 8,
        },
        "sft": {"effective_batch_size": 16, "micro_batch_size": 16, "eval_steps": 3},
        "pft": {"effective_batch_size": 8, "micro_batch_size": 8},
        "grpo": {"effective_batch_size": 2, "num_generations": 2, "max_completion_length": 8},
        "evaluation": {"n_samples": 2, "k_values": [1, 2], "max_new_tokens": 16, "batch_size": 4},
    },
}


class Failed(Exception):
    """A step cannot go on; the reason is a row."""

    def __init__(self, reason: str, status: str = rows.FAILED) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Context:
    """What a step works with."""

    step: str
    device: str
    """cuda or cpu."""
    folder: Path
    """Shared by all steps."""
    file: Path
    """For its rows."""

    @property
    def home(self) -> Path:
        """The TUNING_HOME of the steps."""
        return self.folder / "home"

    @property
    def log(self) -> Path:
        """What the processes of the step say."""
        return self.folder / f"{self.step}.log"

    @property
    def sizes(self) -> dict[str, int]:
        """Examples of a training, by kind."""
        return SIZES[self.device]

    def run_of_sft(self) -> RunDirectory:
        """The run that the step sft has made, for those that begin or compare with it."""
        run = RunDirectory(self.home / "models" / f"{MODEL}_sft-arith-{self.sizes['sft']}")
        if not run.done("train"):
            raise Failed("needs the run of the step sft; name that too: --steps sft", rows.SKIPPED)
        return run

    def say(self, what: str, status: str, says: str, seconds: float = 0.0, **values: Any) -> None:
        """Add a row."""
        rows.append(self.file, rows.row(self.step, what, status, says, seconds, **values))

    def entry(self, script: str, *flags: object, home: Path | None = None) -> float:
        """Run an entry point of tuning/ to its end; returns seconds. Failed with its last line."""
        began = time.monotonic()
        code = self.start(script, *flags, home=home).wait()
        if code != 0:
            raise self.failure(script, code)
        return time.monotonic() - began

    def start(
        self, script: str, *flags: object, home: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """An entry point in the background; what it says is added to the log of the step."""
        with self.log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "tuning" / script), *map(str, flags)],
                env={**os.environ, "TUNING_HOME": str(home or self.home)},
                stdout=file,
                stderr=file,
            )

    def failure(self, script: str, code: int) -> Failed:
        """The error for an entry point that ended with another exit code than 0."""
        last = rows.last_words(self.log)
        status = rows.MEMORY if rows.lacked_memory(self.log) else rows.FAILED
        if last.startswith("ModuleNotFoundError: No module named"):
            status = rows.SKIPPED
        return Failed(f"{script} ended with exit code {code}: {last}", status)


def prepare(folder: Path, device: str) -> None:
    """Write the collections and make the home."""
    (folder / "home").mkdir(exist_ok=True)
    settings = {stage: dict(values) for stage, values in _SETTINGS[device].items()}
    for stage in ("sft", "pft"):
        common = {"num_train_epochs": 1.0, "save_steps": 5}
        settings[stage] = common | _SMALL | settings[stage]
    settings["sft"] |= {"learning_rate": 1e-3, "validation_size": 32}
    settings["pft"] |= {"learning_rate": 1e-4, "beta": 0.1, "sft_loss_weight": 0.5}
    collections = {
        "tasks": {"math": {"datasets": ["arith"]}},
        "datasets": {"arith": {"loader": "arith"}},
        "sft_ratio": [0.0, 1.0],
        "pft_methods": ["dpo", "kto", "grpo"],
        "perplexity_thresholds": [1.01],
        "models": {MODEL: {"from_run": MODEL, "chat_template": "tiny", "settings": settings}},
    }
    # JSON is YAML.
    (folder / "collections.yaml").write_text(json.dumps(collections, indent=1), encoding="utf-8")


def environment(folder: Path, device: str) -> Mapping[str, str]:
    """The environment of the steps."""
    found = {**os.environ, **QUIET}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    found["TUNING_HOME"] = str(folder / "home")
    found["TUNING_COLLECTIONS"] = str(folder / "collections.yaml")
    if device == "cpu":
        found["CUDA_VISIBLE_DEVICES"] = ""
        # Two threads on two cores that others use as well are many times slower than one.
        found.setdefault("OMP_NUM_THREADS", "1")
    return found

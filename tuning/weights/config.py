"""Which base model a run starts from, how it is loaded, and the adapter that is trained over it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from tuning.runs.names import folder_label, written
from tuning.settings import hashed_settings, identity_hash, require, setting

ATTENTION_AND_MLP = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)


def in_half(precision: str, *, cuda: bool) -> bool:
    """Whether a precision or dtype setting means bfloat16; auto does on CUDA."""
    return precision in ("bf16", "bfloat16") or (precision == "auto" and cuda)


def _in_a_run(part: Any, run: Any) -> bool:
    """A setting of runs, and not of the base model by itself."""
    return run is not part


def _of_an_adapter(part: Any, run: Any) -> bool:
    return not part.full


@dataclass(frozen=True, kw_only=True)
class ModelLoadConfig:
    """Which base model, and how it is loaded."""

    model: str = setting(flag=False, hashed=False)
    """A key of collections.yaml, a hub id (`org/name`) or an absolute path."""
    source: str = setting(flag=False)
    """Where the weights come from: a hub id, `run:NAME`, or `local` for a folder."""
    path: str | None = setting(None, flag=False, hashed=False)
    """The folder of a local model."""
    base_hash: str | None = setting(None, flag=False)
    """The hash of the run that made the base model, or of a local folder's files."""
    chat_template: str | None = None
    """Name of a template in tuning/data/chat_templates (default: the tokenizer's own template)."""
    max_seq_length: int = setting(1024, hashed=_in_a_run)
    """Maximum length of prompt and response together, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the weights; auto: bfloat16 on CUDA, float32 elsewhere."""
    load_in_4bit: bool = setting(False, before=False)
    """Hold the frozen base in 4 bits (NF4, QLoRA), in training and whenever the model is loaded;
    needs bitsandbytes."""
    backend_train: Literal["auto", "transformers", "unsloth"] = setting("auto", hashed=False)
    """What opens a model to train it with TRL; auto: unsloth on CUDA where it is installed. Changes
    memory and speed; the result only by rounding."""

    def __post_init__(self) -> None:
        require(self, "max_seq_length", self.max_seq_length > 1, "above 1")

    @property
    def label(self) -> str:
        """The model in run names."""
        is_path = self.model.startswith("/")
        return written(folder_label(PurePath(self.model)) if is_path else self.model)

    @property
    def hashed(self) -> dict[str, Any]:
        """Weights, chat template and precision of the base model as it is evaluated."""
        found: dict[str, Any] = hashed_settings(self)
        return found

    @property
    def identity_hash(self) -> str:
        """Over the weights, the chat template and the precision of the base model."""
        return identity_hash("base", self.hashed)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """The adapter that is trained over the frozen base model, or all weights in its place."""

    full: bool = setting(False, before=False)
    """Train all weights instead of an adapter; the run leaves a whole model."""
    lora_r: int = setting(32, hashed=_of_an_adapter)
    """Rank of the update matrices."""
    lora_alpha: int = setting(32, hashed=_of_an_adapter)
    """Scale: the update is multiplied by lora_alpha / lora_r."""
    lora_dropout: float = setting(0.0, hashed=_of_an_adapter)
    """Dropout probability on the adapter's input."""
    target_modules: tuple[str, ...] = setting(ATTENTION_AND_MLP, hashed=_of_an_adapter)
    """Linear layers that get an adapter."""
    full_modules: tuple[str, ...] = setting((), hashed=_of_an_adapter)
    """Modules that are trained in full beside the adapter (peft's modules_to_save)."""

    def __post_init__(self) -> None:
        for name in ("lora_r", "lora_alpha"):
            require(self, name, getattr(self, name) > 0, "above zero")
        require(self, "lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1)")
        require(self, "target_modules", bool(self.target_modules), "one or more layer names")

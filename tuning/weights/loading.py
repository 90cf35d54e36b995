"""One door to weights: the base model, and a run's artifact, adapter or whole, for training and for
inference.

An adapter lies over the nearest ancestor that left whole weights, or the sweetspot of it that was
forked, or else over the base model.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.runs.atomic import whole_directory
from tuning.runs.errors import UserError, choose
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.store import checkpoint_name
from tuning.weights.base import MODEL, base_location
from tuning.weights.config import LoraConfig, ModelLoadConfig, in_half
from tuning.weights.reading import pretrained

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(model: ModelLoadConfig) -> PreTrainedTokenizerBase:
    """The tokenizer with the run's chat template; its end-of-sequence token ends a turn."""
    from transformers import AutoTokenizer

    location = base_location(model)
    tokenizer = pretrained(AutoTokenizer, location)
    if model.chat_template:
        template = site.CHAT_TEMPLATES / f"{model.chat_template}.jinja"
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(
            f"model '{model.model}' brings no chat template; give --chat_template NAME, one of: "
            f"{', '.join(sorted(path.stem for path in site.CHAT_TEMPLATES.glob('*.jinja')))}."
        )
    _end_turns(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _end_turns(tokenizer: Any) -> None:
    """Make the special token that ends an assistant's turn the end of a sequence."""
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    last = next((token for token in reversed(ids[-3:]) if token in special), None)
    if last is not None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(last)


def load_base(model: ModelLoadConfig, location: str | None = None) -> PreTrainedModel:
    """The base model on this machine's device, in the precision that the config asks for."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    loaded = pretrained(
        AutoModelForCausalLM, location or base_location(model), dtype=dtype_of(model)
    )
    return loaded.to("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(model: ModelLoadConfig) -> torch.dtype:
    """The precision in which weights are loaded on this machine."""
    import torch

    half = in_half(model.dtype, cuda=torch.cuda.is_available())
    return torch.bfloat16 if half else torch.float32


def foundation(
    directory: RunDirectory | None, model: ModelLoadConfig, checkpoint: Path | None = None
) -> str:
    """Where the whole weights lie that a run, or a checkpoint of it, consists of or stands on."""
    while directory is not None and directory.config is not None:
        if directory.config["artifact"] == "full":
            return str(checkpoint or directory.path / MODEL)
        parent = directory.config["parent"]
        if not parent:
            break
        directory = RunDirectory(directory.path.parent / parent["run_name"])
        label = parent.get("sweetspot")
        checkpoint = directory.path / checkpoint_name(label) if label else None
    return base_location(model)


def load_artifact(
    model: ModelLoadConfig,
    directory: RunDirectory | None,
    checkpoint: Path | None = None,
    *,
    trainable: bool = False,
) -> PreTrainedModel | PeftModel:
    """The weights of a run, or of one of its checkpoints; of the base where `directory` is None."""
    if directory is None:
        return load_base(model)
    where = checkpoint or directory.path / MODEL
    loaded = load_base(model, foundation(directory, model, checkpoint))
    if not (where / "adapter_config.json").exists():
        return loaded
    from peft import PeftModel

    return PeftModel.from_pretrained(loaded, str(where), is_trainable=trainable)


def is_adapter(model: Any) -> bool:
    """Whether a loaded model carries an adapter."""
    return hasattr(model, "peft_config")


def peft_config(lora: LoraConfig) -> Any:
    """The adapter as peft wants it."""
    import peft

    return peft.LoraConfig(
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        modules_to_save=list(lora.full_modules) or None,
        ensure_weight_tying=bool(lora.full_modules),
        task_type="CAUSAL_LM",
    )


def require_modules(model: Any, lora: LoraConfig) -> None:
    """Raise UserError for a module that an adapter is asked of and the model does not have."""
    there = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    for setting in ("target_modules", "full_modules"):
        for name in getattr(lora, setting):
            choose(f"module in {setting}:", name.rpartition(".")[2], sorted(there - {""}))


def save(model: Any, tokenizer: Any, target: Path) -> None:
    """Write the trained adapter, or whole weights, and the tokenizer: whole or not at all."""
    with whole_directory(target) as folder:
        write(model, folder)
        tokenizer.save_pretrained(folder)


def write(model: Any, folder: Path) -> None:
    """The weights of a run without frozen copies of its parent."""
    if is_adapter(model):
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.save_pretrained(folder)

"""Artifacts as models of transformers and peft, for training and inference, and back to disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning import config as site
from tuning.runs.atomic import whole_directory
from tuning.runs.errors import UserError, choose
from tuning.weights import four_bit
from tuning.weights.artifact import Artifact
from tuning.weights.config import LoraConfig, in_half
from tuning.weights.files import require_whole
from tuning.weights.reading import read, read_config, read_tokenizer, readable

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def open_tokenizer(artifact: Artifact) -> PreTrainedTokenizerBase:
    """The tokenizer with the artifact's chat template; its end-of-sequence token ends a turn."""
    tokenizer: PreTrainedTokenizerBase = read_tokenizer(artifact.tokenizer)
    _require_words(tokenizer, artifact)
    if artifact.chat_template:
        template = site.chat_template(artifact.chat_template)
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    if not tokenizer.chat_template:
        raise UserError(
            f"model '{artifact.model}' brings no chat template; give --chat_template NAME, one of: "
            f"{', '.join(_templates())}."
        )
    with readable(artifact.tokenizer):  # which runs its template
        _end_turns(tokenizer, artifact.model)
        _require_vocabulary(tokenizer, artifact)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _require_vocabulary(tokenizer: Any, artifact: Artifact) -> None:
    """Raise UserError for tokens that the model has no embedding of; special ones that no turn has
    may be beyond it, as those of images are.
    """
    size = getattr(read_config(artifact.base).get_text_config(), "vocab_size", None)
    if size is None:
        return
    beyond = {id for id in tokenizer.get_vocab().values() if id >= size}
    if not beyond:
        return
    special = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}
    used = ends | set(_turn(tokenizer))
    if wrong := beyond - (special - used):
        raise UserError(
            f"the tokenizer '{artifact.tokenizer}' has the token id {max(wrong)} and model "
            f"'{artifact.model}' the ids 0 to {size - 1}; give the tokenizer that belongs to the "
            "model."
        )


def _turn(tokenizer: Any) -> list[int]:
    """The token ids of a short conversation."""
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(turn, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _require_words(tokenizer: Any, artifact: Artifact) -> None:
    """Raise UserError for a tokenizer without words: a library makes an empty one of no files."""
    ids = tokenizer("a question", add_special_tokens=False)["input_ids"]
    if not set(ids) - {tokenizer.unk_token_id}:
        raise UserError(
            f"'{artifact.tokenizer}' has no tokenizer that reads text: its files are missing or "
            "empty. Download or copy them (tokenizer.json) beside the model."
        )


def _end_turns(tokenizer: Any, model: str) -> None:
    """Make the special token that ends an assistant's turn the end of a sequence.

    Raises UserError for a template that ends it with none: stopping would never be learnt.
    """
    answer = "the answer"
    turns = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    if answer not in text:
        raise UserError(
            f"the chat template of model '{model}' changes the words of an answer; give another "
            f"--chat_template ({', '.join(_templates())})."
        )
    end = text.rpartition(answer)[2]
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(n for n, token in added.items() if token.special)}
    ids = tokenizer(end, add_special_tokens=False)["input_ids"]
    ends = [token for token in ids if token in special] or [t for t in ids if t in added]
    if not ends:
        raise UserError(
            f"the chat template ends an answer of model '{model}' with {end!r}, in which there is "
            "no special token of its tokenizer: the model would not learn to stop. Give another "
            f"--chat_template ({', '.join(_templates())}), or a model whose tokenizer has it."
        )
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])


def _templates() -> list[str]:
    return sorted(path.stem for path in site.CHAT_TEMPLATES.glob("*.jinja"))


def open_model(
    artifact: Artifact, *, trainable: bool = False, device: str | None = None
) -> PreTrainedModel | PeftModel:
    """The model on a device (None: this machine's), in its precision; `trainable`: its adapter is
    trained.

    Raises UserError where weights are not there or cannot be read.
    """
    import torch

    adapter = artifact.adapter
    if adapter is not None and not (adapter / "adapter_config.json").exists():
        raise UserError(f"'{adapter}' holds no adapter: it has no adapter_config.json.")
    dtype = dtype_of(artifact.dtype)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if artifact.load_in_4bit:
        loaded = read(artifact.base, dtype, **four_bit.how(dtype, device))
    else:
        loaded = read(artifact.base, dtype).to(device)  # type: ignore[arg-type]
    loaded.loaded_as = dtype  # type: ignore[assignment]
    return loaded if adapter is None else with_adapter(loaded, adapter, trainable=trainable)


def with_adapter(model: Any, adapter: Path, *, trainable: bool = False) -> PeftModel:
    """A model with the adapter of a folder over it; UserError where that cannot be read."""
    from peft import PeftModel

    require_whole(adapter)
    with readable(str(adapter)):
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=trainable)


def dtype_of(name: str) -> torch.dtype:
    """The precision in which weights are loaded on this machine; see ModelLoadConfig.dtype."""
    import torch

    half = in_half(name, cuda=torch.cuda.is_available())
    return torch.bfloat16 if half else torch.float32


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


def save(
    model: Any, tokenizer: Any, target: Path, state: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the trained adapter, or whole weights, and the tokenizer: whole or not at all."""
    with whole_directory(target) as folder:
        write(model, folder, state)
        tokenizer.save_pretrained(folder)


def write(model: Any, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
    """The weights of a run: an adapter without frozen copies of its parent, or a whole model in the
    precision that it is loaded in, whatever it is trained in; `state`: the whole ones of a model
    that is sharded.
    """
    more = {} if state is None else {"state_dict": state}
    if is_adapter(model):
        model.save_pretrained(
            folder, selected_adapters=["default"], save_embedding_layers=False, **more
        )
        return
    weights = model.state_dict() if state is None else state
    dtype = getattr(model, "loaded_as", None)
    if dtype is None or all(weight.dtype == dtype for weight in weights.values()):
        model.save_pretrained(folder, **more)
        return
    model.save_pretrained(folder, state_dict=_cast(weights, dtype))
    model.config.dtype = dtype  # which was written as that of the model
    model.config.save_pretrained(folder)


def _cast(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights in another precision, in host memory; those that are tied stay one tensor."""
    made: dict[int, torch.Tensor] = {}
    for weight in weights.values():
        to = dtype if weight.is_floating_point() else weight.dtype
        if weight.data_ptr() not in made:
            made[weight.data_ptr()] = weight.detach().to("cpu", to)
    return {name: made[weight.data_ptr()] for name, weight in weights.items()}

"""What opens a model for TRL's trainers: transformers and peft, or unsloth, whose kernels train the
same with less memory and time on a GPU.

unsloth replaces parts of transformers, peft and trl for the whole process as it is imported. So it
has to come before them, and what it has replaced is for training alone: models that are opened in
another way do not generate there any more. A stage calls `begin()` before it trains and `leave()`
before it measures or samples what was trained; each goes on in a new process where it has to.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tuning import config as site
from tuning.inference.generator import context_of
from tuning.methods import method
from tuning.runs import interrupt, provenance, ranks
from tuning.runs.errors import STARTED_AGAIN, Afresh, UserError
from tuning.weights.artifact import Artifact
from tuning.weights.config import ModelLoadConfig

TRANSFORMERS, UNSLOTH = "transformers", "unsloth"
VERSION = "2026.10.7"
REPLACED = ("transformers", "peft", "trl")
"""Packages of which unsloth replaces parts."""


def chosen(run: Any) -> str:
    """What opens the model of a run on this machine; `auto` means unsloth on CUDA where it is
    installed, in one process, for what it can do.
    """
    if run.model.backend_train != "auto":
        return str(run.model.backend_train)
    there = bool(provenance.gpus()) and provenance.version(UNSLOTH) and ranks.world_size() == 1
    able = not run.samples if run.kind == "sft" else method(run.pft_method).unsloth
    return UNSLOTH if there and able else TRANSFORMERS


def require(model: ModelLoadConfig) -> None:
    """Raise UserError where what was asked for is not here; imports nothing heavy."""
    if model.backend_train != UNSLOTH:
        return
    wanted = "--backend_train unsloth needs "
    if provenance.version(UNSLOTH) is None:
        raise UserError(
            f"{wanted}the package unsloth, which is not installed in {sys.prefix}: pip install "
            f"unsloth=={VERSION} (requirements-gpu.txt has it); or give --backend_train auto."
        )
    if not provenance.gpus():
        raise UserError(f"{wanted}a GPU, and this machine has none; give --backend_train auto.")


def trainer_of(run: Any) -> Callable[..., None]:
    """The function that trains an SFT or preference run: (config, run directory, for a preference
    run its Start, what it reports to) -> None.
    """
    if run.trainer == "trl":
        require(run.model)
    if _by_unsloth(run):
        _import_unsloth()
    if run.kind == "pt":
        return method(run.pft_method).train_with()
    name = "engine_sft" if run.trainer == "engine" else "sft_training"
    found: Callable[..., None] = pkgutil.resolve_name(f"tuning.training.{name}:train")
    return found


def begin(run: Any) -> None:
    """Import unsloth if it opens the model of a run. Raises Afresh where what it replaces is here
    already, once: whatever brings that along comes again then.
    """
    if not _by_unsloth(run):
        return
    late = any(package in sys.modules for package in REPLACED) and UNSLOTH not in sys.modules
    if late and STARTED_AGAIN not in os.environ:
        interrupt.check()
        raise Afresh(f"unsloth has to be imported before {', '.join(REPLACED)}")
    _import_unsloth()


def leave() -> None:
    """Raise Afresh if unsloth was imported; call it when the run is trained. The new process would
    not know of a request to stop, so that is obeyed first.
    """
    if UNSLOTH in sys.modules:
        interrupt.check()
        raise Afresh("what unsloth has replaced in this process is for training alone")


def _by_unsloth(run: Any) -> bool:
    return run.trainer == "trl" and chosen(run) == UNSLOTH


def _import_unsloth() -> None:
    """It reads these variables, keeps code that it makes, and would ask the hub for a file to be
    counted.
    """
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(site.home() / "cache" / "unsloth"))
    import unsloth  # noqa: F401


def open_policy(
    config: Any, artifact: Artifact, *, continues: bool = False, device: str | None = None
) -> tuple[Any, Any]:
    """The model that an SFT or preference run trains, and the config of a new adapter, which is
    still to be put over it; None where it has one, or all weights are trained.

    `continues`: the artifact's adapter is trained further; otherwise it is merged. `device`: as of
    `loading.open_model()`.
    """
    from tuning.weights import loading

    unsloth, base = chosen(config) == UNSLOTH, replace(artifact, adapter=None)
    model: Any = (
        _opened_by_unsloth(config, base) if unsloth else loading.open_model(base, device=device)
    )
    if artifact.adapter is not None:
        model = loading.with_adapter(model, artifact.adapter, trainable=continues)
        model = model if continues else model.merge_and_unload()
    if config.lora.full:
        return model.requires_grad_(True), None
    if not continues:
        loading.require_modules(model, config.lora)
    if unsloth:
        return _patched_by_unsloth(config, model, continues), None
    return model, None if continues else loading.peft_config(config.lora)


def _opened_by_unsloth(config: Any, base: Artifact) -> Any:
    """The base; with a limit above the context of the model, unsloth would stretch its positions,
    which makes it another model.
    """
    from unsloth import FastLanguageModel

    from tuning.weights import loading, reading

    dtype = loading.dtype_of(base.dtype)
    context = context_of(reading.read_config(base.base))
    with reading.readable(base.base):
        model, _ = FastLanguageModel.from_pretrained(
            model_name=base.base,
            max_seq_length=min(config.model.max_seq_length, context),
            dtype=dtype,
            load_in_4bit=base.load_in_4bit,
            full_finetuning=config.lora.full,
            use_exact_model_name=True,  # not another upload of the same model
            fix_tokenizer=False,  # the tokenizer is ours
            use_gradient_checkpointing=_checkpointing(config),
            random_state=config.training.seed,
        )
    model.loaded_as = dtype
    return model


def _patched_by_unsloth(config: Any, model: Any, continues: bool) -> Any:
    """A model with its adapter, or a new one, as unsloth computes it."""
    from unsloth import FastLanguageModel

    lora, checkpointing = config.lora, _checkpointing(config)
    if continues:
        return FastLanguageModel.patch_peft_model(model, use_gradient_checkpointing=checkpointing)
    return FastLanguageModel.get_peft_model(
        model,
        r=lora.lora_r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(lora.target_modules),
        modules_to_save=list(lora.full_modules) or None,
        ensure_weight_tying=bool(lora.full_modules),
        use_gradient_checkpointing=checkpointing,
        random_state=config.training.seed,
    )


def _checkpointing(config: Any) -> str | bool:
    """As asked for, or as unsloth does it, which keeps what a block needs in host memory."""
    asked = config.compute.gradient_checkpointing
    return "unsloth" if asked is None else bool(asked)

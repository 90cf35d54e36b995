"""Shared by the four TRL trainers: arguments, seeding, training from a resume point, and what is
written at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import set_seed
from transformers.trainer_callback import PrinterCallback

from tuning.engine import ranks
from tuning.runs.errors import Interrupted
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory
from tuning.training import backend, sharded
from tuning.training.checkpoints import Resume, RunCallback
from tuning.training.config import largest_divisor, optimizer_name
from tuning.training.config_training import PTRunConfig, SFTRunConfig
from tuning.weights.base import MODEL
from tuning.weights.loading import save


def arguments(
    config: SFTRunConfig | PTRunConfig,
    directory: RunDirectory,
    report_to: list[str],
    steps: int,
    batch: int,
) -> dict[str, Any]:
    """The training arguments that every TRL config takes; `batch` examples an optimizer step.

    RunCallback reports to what `report_to` names: where W&B fails, the Trainer's own way ends the
    training.
    """
    directory.report_to = tuple(report_to)
    t, compute = config.training, config.compute
    micro, accumulation = passes(batch, compute.micro_batch_size or batch, ranks.world_size())
    cuda = torch.cuda.is_available()
    checkpointing = compute.gradient_checkpointing
    return {
        "output_dir": str(directory.path),
        "run_name": directory.name,
        "report_to": [],
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.lr_scheduler,
        "warmup_steps": 0 if t.lr_scheduler == "constant" else t.warmup_ratio,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "optim": optimizer_name(t.optimizer, cuda=cuda),
        "seed": t.seed,
        "data_seed": t.seed,
        "save_strategy": "steps",
        "save_steps": t.save_steps,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it shows the loss before in place of one that is nan
        "use_cpu": not cuda,
        "ddp_find_unused_parameters": False,
        **sharded.arguments(compute),
        "bf16": cuda,
        "gradient_checkpointing": cuda if checkpointing is None else checkpointing,
        "dataloader_pin_memory": cuda,
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "non_padding",
    }


def passes(batch: int, most: int, processes: int) -> tuple[int, int]:
    """How a step of `batch` examples is computed: examples of a process in one pass, `most` at
    most, and passes. The rest that a fork has may be no multiple of the processes; then some have
    one example less in a pass than others.
    """
    if batch % processes == 0:
        micro = largest_divisor(batch // processes, most)
        return micro, batch // processes // micro
    count = math.ceil(batch / (most * processes))
    return math.ceil(math.ceil(batch / count) / processes), count


def in_float32(model: Any) -> None:
    """Keep trained parameters in float32: a small step on a bfloat16 weight rounds to nothing."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def seeded(config: SFTRunConfig | PTRunConfig) -> None:
    """Seed every generator; before anything is initialised at random."""
    set_seed(config.training.seed)


def run(trainer: Any, callback: RunCallback, resume: Resume, *, finished: bool = False) -> None:
    """Train from the resume point to the end; raises Interrupted when everything was saved on
    request.

    `finished` says that the resumed run has nothing left to train.
    """
    trainer.remove_callback(PrinterCallback)
    in_float32(trainer.model)
    if ranks.rank():
        set_seed(trainer.args.seed + ranks.rank())  # dropout differs between ranks
    steps = trainer.args.max_steps
    if finished or resume.step >= steps:
        trainer.state.global_step = resume.step
        trainer._load_from_checkpoint(str(resume.checkpoint))
        trainer.state.num_input_tokens_seen = resume.state.get("tokens", 0)
        return
    if resume.checkpoint and trainer.is_fsdp_enabled:
        trainer._load_from_checkpoint(str(resume.checkpoint))  # before it is sharded
    if ranks.world_size() > 1:
        spread = "fsdp2" if trainer.is_fsdp_enabled else "ddp"
        logger.info(f"{ranks.world_size()} processes share each step ({spread})")
    try:
        trainer.train(resume_from_checkpoint=str(resume.checkpoint) if resume.checkpoint else None)
    finally:
        callback.close()
    if callback.stopped and trainer.state.global_step < steps:
        raise Interrupted


def finish(
    trainer: Any,
    tokenizer: Any,
    config: SFTRunConfig | PTRunConfig,
    directory: RunDirectory,
    callback: RunCallback,
    train_size: int,
    prepare: Callable[[Any, Any], tuple[Any, Any]] = lambda model, state: (model, state),
    **more: Any,
) -> None:
    """Write the model and result.json; checkpoints stay until it is done. Rank 0 writes."""
    state = sharded.whole_state(trainer.model)
    if ranks.rank():
        return
    step = trainer.state.global_step
    directory.write_result(
        global_step=step,
        train_size=train_size,
        data_points_seen=callback.consumed.seen,
        data_used=callback.consumed.used,
        train_tokens=int(trainer.state.num_input_tokens_seen),
        train_seconds=round(callback.seconds, 2),
        device=trainer.model.device.type,
        processes=ranks.world_size(),
        backend=backend.chosen(config),
        **more,
    )
    model, state = prepare(trainer.model, state)
    save(model, tokenizer, directory.path / MODEL, state)

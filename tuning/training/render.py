"""Configs as the commands that a person would type for them. For people only: nothing of ours reads
them back.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace

from tuning.engine.config import ComputeConfig
from tuning.engine.run_config import PRETRAIN_PARTS, PretrainRunConfig, pretrain_config
from tuning.evaluation.config import EvaluationRunConfig, PassAtKConfig, sampling_config
from tuning.evaluation.generators import GENERATORS
from tuning.flags import command_line
from tuning.settings import RunConfig
from tuning.training.config import unused
from tuning.training.config_training import PTRunConfig, SFTRunConfig, model_config
from tuning.weights.config import ModelLoadConfig

FOLLOWS = {
    "seq_len": ("block_size",),
    "min_lr": ("max_lr",),
    "training_mode": ("max_steps", "max_tokens"),
}
"""Settings of pre-training that follow from others; beside those they must be given."""


def pretrain_words(config: PretrainRunConfig) -> list[str]:
    """The pre-training of a model of collections.yaml."""
    default = pretrain_config(config.model)
    parts = ("shape", "data", "training", "compute", "output")
    assert len(parts) == len(PRETRAIN_PARTS)
    pairs = [(getattr(config, part), getattr(default, part)) for part in parts]
    words = command_line(pairs)
    for name, others in FOLLOWS.items():
        if f"--{name}" not in words and any(f"--{other}" in words for other in others):
            words += [f"--{name}", str(getattr(config.training, name))]
    return ["run_pretrain.py", "--model", config.model, *words]


def sft_words(config: SFTRunConfig) -> list[str]:
    """An SFT run, without its phases."""
    default = config.default()
    if config.trainer == "engine":  # whose default --parallel is another one
        of_engine = replace(default.compute, parallel=ComputeConfig().parallel)
        default = replace(default, compute=of_engine)
    names = ("model", "lora", "training", "loss", "perplexity", "pass_at_k", "compute", "engine")
    return [
        "run_sft.py",
        "--model",
        config.model.model,
        "--dataset",
        config.dataset.dataset,
        "--task",
        config.task,
        "--train_size",
        str(config.train_size),
        *_changes(config, default, names, unused(config.trainer)),
    ]


def _changes(
    config: RunConfig, default: RunConfig, names: Sequence[str], skip: Iterable[str]
) -> list[str]:
    """The flags of the parts `names` of a config that differ from the default's, without `skip`."""
    pairs = []
    for name in names:
        ours, theirs = getattr(config, name), getattr(default, name)
        same = {f.name: getattr(theirs, f.name) for f in fields(ours) if f.name in skip}
        pairs.append((replace(ours, **same), theirs))
    return command_line(pairs)


def preference_words(config: PTRunConfig) -> list[str]:
    """A preference run, without its phases."""
    default = config.default()
    words = [
        "run_dpo.py",
        "--model",
        config.model.model,
        "--dataset",
        config.dataset.dataset,
        "--task",
        config.task,
        "--pft_method",
        config.pft_method,
    ]
    if config.dataset.train_size is not None:
        words += ["--train_size", str(config.dataset.train_size)]
    if config.parent:
        words += ["--parent_run", config.parent.run_name]
        if config.parent.sweetspot:
            words += ["--sweetspot", config.parent.sweetspot]
            words += ["--total_data", str(config.parent.total_data)]
    names = ["model", "lora", "training", "compute"]
    if config.continues_adapter:
        names.remove("lora")
    return words + _changes(config, default, names, unused(config.pft_method))


def evaluation_words(config: EvaluationRunConfig) -> list[str]:
    """The evaluation of a base model, of a run, or of a sweetspot of one, without its phases."""
    if config.run is None:
        which = ["--model", config.base.model, *_base_words(config.base)]
    else:
        which = ["--run", config.run]
        which += ["--sweetspot", config.sweetspot] if config.sweetspot else []
    return [
        "run_inference.py",
        *which,
        "--dataset",
        config.dataset,
        "--task",
        config.task,
        *sampling_words(config.base.model, config.sampling),
    ]


def sampling_words(model: str, sampling: PassAtKConfig) -> list[str]:
    """How a model is sampled; with its backend where `auto` could mean another one elsewhere."""
    words = command_line([(sampling, sampling_config(model))])
    ambiguous = GENERATORS["vllm"].installed and "--backend" not in words
    return [*words, "--backend", sampling.backend] if ambiguous else words


def _base_words(model: ModelLoadConfig) -> list[str]:
    """How run_inference.py loads a base model as a run does."""
    default = model_config(model.model)
    return command_line([(replace(model, max_seq_length=default.max_seq_length), default)])


def sft_command(config: SFTRunConfig) -> str:
    """The command that makes an SFT run."""
    script, *flags = sft_words(config)
    return shlex.join(["python", f"tuning/{script}", *flags, "--do_training"])


def preference_command(config: PTRunConfig) -> str:
    """The command that makes a preference run."""
    script, *flags = preference_words(config)
    return shlex.join(["python", f"tuning/{script}", *flags, "--do_training"])

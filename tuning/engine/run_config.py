"""A pre-training run: the model, the data and the optimizer, and what the run is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.engine.config import (
    ComputeConfig,
    DataConfig,
    ModelConfig,
    OptimizationConfig,
    OutputConfig,
    loss_name,
)
from tuning.engine.sources import kind_of
from tuning.flags import build
from tuning.runs import provenance, ranks
from tuning.runs.content import file_hash
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import digest
from tuning.runs.names import require_name
from tuning.runs.rundir import SHORT
from tuning.schema import mapping, override, read_yaml
from tuning.settings import RunConfig, setting
from tuning.weights.files import checked_hash
from tuning.weights.shape import Shape, linears

PRETRAIN_PARTS: tuple[type, ...] = (
    ModelConfig,
    DataConfig,
    OptimizationConfig,
    ComputeConfig,
    OutputConfig,
)
PRESETS = Path(__file__).with_name("presets.yaml")
MICRO_BATCH = 8
"""Sequences of a forward pass, unless --micro_batch_size or --max_tokens_per_gpu is given."""
PACKED_BATCH = 8
"""Samples of an optimizer step with --max_tokens_per_gpu, unless --batch_size is given."""
_INSTEAD = {
    "data_path": ("corpus",),
    "use_mock_data": ("corpus",),
    "batch_size": ("micro_batch_size",),
    "micro_batch_size": ("batch_size",),
    "max_tokens_per_gpu": ("micro_batch_size",),
}
"""What a setting that is given takes the place of, in a preset or in collections.yaml."""


@dataclass(frozen=True, kw_only=True)
class PretrainRunConfig(RunConfig):
    """One run of the engine: from fresh weights, tokenizer and chat template included, or on from
    an existing model.
    """

    kind = "pretrain"
    model: str = setting(hashed=False)
    """The run's name: a model of collections.yaml that this run makes, or an experiment's."""
    registered: bool = setting(hashed=False)
    """Whether `model` is in collections.yaml."""
    chat_template: str
    """A file of tuning/data/chat_templates without its ending."""
    data_version: str
    """Changes when the data do."""
    source: str | None = setting(None, hashed=False)
    """The folder or hub id of the weights that training starts from; None: fresh ones."""
    base_hash: str | None = None
    """The hash of those weights."""
    brought: bool = setting(False, hashed=False)
    """Whether the samples are passed in from Python, in place of what `data` names."""
    is_default: bool = setting(False, hashed=False)
    """Whether all settings are those of the model in collections.yaml."""
    shape: ModelConfig = setting(hashed=lambda part, run: run.source is None)
    data: DataConfig
    training: OptimizationConfig
    balanced_over: int | None = setting(None, before=None)
    """Of a mixture of experts: the micro-batch, in sequences or tokens, since the loss that
    balances the experts is taken over one."""
    truncated_at: int | None = setting(None, before=None)
    """Tokens after which rows are cut off; None: longer rows are refused."""
    compute: ComputeConfig = setting(default_factory=ComputeConfig)
    output: OutputConfig = setting(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        _check_sources(self)
        _check_batch(self)
        _check_held_out(self)
        if self.training.osft and self.source is None:
            raise UserError("--osft keeps what a model knows; give one with --model_name_or_path")

    @property
    def has_experts(self) -> bool:
        """Whether fresh weights are those of a mixture of experts."""
        return self.shape.use_moe and self.source is None

    @property
    def artifact_form(self) -> str:
        """The engine trains, and leaves, full weights."""
        return "full"

    @property
    def run_name(self) -> str:
        """`{model}`, followed by `-{hash8}` unless all settings are those of collections.yaml."""
        return self.model if self.is_default else f"{self.model}-{self.hash[:SHORT]}"

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence."""
        return self.training.seq_len or self.shape.block_size

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step over all ranks."""
        t = self.training
        return t.batch_size or t.total_batch_size // self.seq_len


def pretrain_config(model: str, values: Mapping[str, Any] | None = None) -> PretrainRunConfig:
    """The pre-training of a model: defaults, then its preset, then collections.yaml, then `values`
    (flat names).
    """
    entry = site.collections().model(model)
    if entry.from_run != model:
        raise UserError(
            f"model '{model}' is not pre-trained here; a model is where collections.yaml says "
            f"'from_run: {model}' under its name."
        )
    where = f"collections.yaml: models: {model}: settings: pretrain"
    given = dict(entry.settings.get("pretrain", {}))
    chosen = beside(preset(given.pop("preset", None)), override(PRETRAIN_PARTS, given, where))
    template = entry.chat_template or "chatml"
    default = replace(_config(model, True, template, chosen), is_default=True)
    if not values:
        return default
    made = _config(model, True, template, beside(chosen, values))
    return replace(made, is_default=made.hashed == default.hashed)


@cache
def _hash_of(model: str, _collections: Path) -> str:
    return pretrain_config(model).hash


def pretrain_hash(model: str) -> str:
    """The hash of the pre-training of a model, worked out once for each collections.yaml."""
    return _hash_of(model, site.collections_path())


def experiment_config(
    name: str, values: Mapping[str, Any], *, samples: str | None = None
) -> PretrainRunConfig:
    """A run named by its experiment, with the settings in `values`.

    `samples`: fingerprint of samples passed in from Python; None if the settings name the data.
    """
    require_name("exp_name", name)
    return _config(name, False, "chatml", values, samples)


def beside(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over `base`, the settings of a preset or of collections.yaml, without the settings
    of `base` that they take the place of.
    """
    dropped = {old for name in values if values[name] for old in _INSTEAD.get(name, ())}
    return {k: v for k, v in base.items() if k not in dropped} | dict(values)


@cache
def _presets() -> dict[str, Any]:
    return mapping(read_yaml(PRESETS), PRESETS.name)


def preset(name: str | None) -> dict[str, Any]:
    """The settings of a preset by its name."""
    if name is None:
        return {}
    choose("preset", str(name), sorted(_presets()))
    return override(PRETRAIN_PARTS, _presets()[name], f"presets.yaml: {name}")


def _config(
    name: str,
    registered: bool,
    template: str,
    chosen: Mapping[str, Any],
    samples: str | None = None,
) -> PretrainRunConfig:
    chosen = dict(chosen) | _homes(chosen)
    source, base_hash = _weights(chosen.pop("model_name_or_path", None))
    chosen |= _batch(chosen)
    data, shape = build(DataConfig, chosen), build(ModelConfig, chosen)
    training = _resolved(build(OptimizationConfig, chosen), shape)
    compute = build(ComputeConfig, chosen)
    has_experts = shape.use_moe and source is None
    micro = compute.max_tokens_per_gpu or compute.micro_batch_size
    made = PretrainRunConfig(
        model=name,
        registered=registered,
        chat_template=template,
        data_version=samples or _version(data),
        source=source,
        base_hash=base_hash,
        brought=samples is not None,
        shape=shape,
        data=data,
        training=training,
        balanced_over=micro if has_experts else None,
        truncated_at=compute.max_tokens_per_gpu if data.on_long == "truncate" else None,
        compute=compute,
        output=build(OutputConfig, chosen),
    )
    _check_file(made)
    return made


_PATHS = ("model_name_or_path", "data_path", "validation_data_path", "tokenizer", "log_dir")


def _homes(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The paths that begin with `~`, expanded: shells leave it alone in --flag=~/x and in YAML."""
    paths = {name: str(chosen[name]) for name in _PATHS if chosen.get(name)}
    return {n: str(site.expanded(p)) for n, p in paths.items() if p.startswith("~")}


def _batch(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the batch, with `batch_size` in its one meaning: samples of a packed step."""
    micro, size = chosen.get("micro_batch_size"), chosen.get("batch_size")
    packed = chosen.get("max_tokens_per_gpu") is not None
    if packed and micro is not None:
        raise UserError(
            "micro_batch_size is for batches of a fixed length; with --max_tokens_per_gpu, samples "
            "are packed up to that many tokens: give one of the two"
        )
    if packed:
        return {"packed": True, "batch_size": PACKED_BATCH if size is None else size}
    if micro is not None and size is not None:
        raise UserError(
            "batch_size and micro_batch_size are the same setting without --max_tokens_per_gpu; "
            "give one of them"
        )
    # Checked here, since the error would name the other setting.
    if size is not None and size < 1:
        raise UserError(f"batch_size is {size}; it must be at least 1.")
    given = size if micro is None else micro
    return {"batch_size": None, "micro_batch_size": MICRO_BATCH if given is None else given}


def _resolved(training: OptimizationConfig, shape: ModelConfig) -> OptimizationConfig:
    """The settings with those that follow from others filled in."""
    return replace(
        training,
        seq_len=training.seq_len or shape.block_size,
        training_mode=training.mode,
        min_lr=training.last_lr,
        loss=loss_name(training.loss),
    )


def shape_of(config: ModelConfig) -> Shape:
    """The shape of a model that is pre-trained here."""
    return Shape(
        layers=config.num_layer,
        linears=linears(
            hidden=config.hidden_size,
            inner=(
                config.moe_intermediate_size * config.num_experts
                if config.use_moe
                else config.intermediate_size
            ),
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head=config.hidden_size // config.num_attention_heads,
        ),
        vocabulary=config.vocab_size,
        hidden=config.hidden_size,
        tied=config.tied_lm_head,
    )


def _weights(location: str | None) -> tuple[str | None, str | None]:
    """(location, hash) of weights: a folder, a model of collections.yaml, or a hub id."""
    if location is None:
        return None, None
    if Path(location).is_dir():
        folder = Path(location).resolve()
        return str(folder), checked_hash(folder)
    entry = site.collections().model(location)
    if entry.from_run:
        from tuning.runs.rundir import locate

        made = pretrain_config(entry.from_run)
        return str(locate(site.models_dir(), made.run_name, made.hash) / "model"), made.hash
    if entry.path:
        return str(entry.path), checked_hash(Path(entry.path))
    return entry.source, digest({"hub": entry.source})


def _version(data: DataConfig) -> str:
    """Changes when the data do."""
    if data.corpus is not None:
        return train_dataset.version(site.DatasetEntry(name=data.corpus, loader=data.corpus), "sft")
    paths = [p for p in (data.data_path, data.validation_data_path) if p]
    return "+".join(file_hash(Path(path)) for path in paths) or "mock"


def _check_sources(config: PretrainRunConfig) -> None:
    """Raise UserError unless there is one source of data, and it fits the model."""
    data, t, shape = config.data, config.training, config.shape
    sources = [
        name
        for name, there in (
            ("--corpus", data.corpus),
            ("--use_mock_data", data.use_mock_data),
            ("--data_path", data.data_path),
            ("samples", config.brought),
        )
        if there
    ]
    if len(sources) != 1:
        raise UserError(
            f"{' and '.join(sources) or 'nothing'} to train on; give one of --use_mock_data, "
            "--data_path FILE, or --model with a model that is made here (tiny)"
        )
    if data.corpus and t.mode != "step":
        raise UserError("a generated corpus has no end; give --max_steps")
    if data.corpus and config.source is None and shape.vocab_size < data.tokenizer_vocab_size:
        raise UserError(
            f"vocab_size {shape.vocab_size} is below tokenizer_vocab_size "
            f"{data.tokenizer_vocab_size}; every token needs a row of the embedding."
        )


def _check_batch(config: PretrainRunConfig) -> None:
    """Raise UserError unless sequences, batch, and the processes of a replica divide evenly."""
    t, sep, length = config.training, config.compute.sep_size, config.seq_len
    if config.source is None and length > config.shape.block_size:
        raise UserError(
            f"seq_len {length} is above block_size {config.shape.block_size}, the longest "
            "sequence of the model"
        )
    if not t.packed and t.total_batch_size % length:
        near = max(1, round(t.total_batch_size / length)) * length
        raise UserError(
            f"total_batch_size {t.total_batch_size} is not a multiple of seq_len {length}; {near} "
            "is the nearest"
        )
    for name, value in (
        ("seq_len", length),
        ("num_attention_heads", config.shape.num_attention_heads),
        ("num_experts", config.shape.num_experts if config.shape.use_moe else None),
    ):
        if config.source is None and value and value % sep:
            raise UserError(f"sep_size {sep} does not divide {name} {value}; change one of them")


def _check_held_out(config: PretrainRunConfig) -> None:
    data = config.data
    if data.validation_data_path and data.validation_split:
        raise UserError("give --validation_data_path or --validation_split, not both")
    held_out = data.validation_data_path or data.validation_split
    if config.output.save_best_val_loss and not held_out:
        raise UserError("--save_best_val_loss needs --validation_split or --validation_data_path")


def _check_file(config: PretrainRunConfig) -> None:
    """Raise UserError unless all is given that the data file needs to be read."""
    path = config.data.data_path
    if path is None:
        return
    kind = kind_of(path)
    if kind == "text" and config.source is None and config.data.tokenizer is None:
        raise UserError(f"'{path}' is text; say how to read it with --tokenizer ID_OR_FOLDER")
    if kind == "rows" and not config.training.packed:
        raise UserError(
            f"'{path}' holds rows of different lengths; say how many tokens fit a pass with "
            "--max_tokens_per_gpu, and how many samples make a step with --batch_size"
        )


def check_place(compute: ComputeConfig) -> None:
    """Raise UserError if the processes or devices here cannot do what is asked."""
    world = ranks.world_size()
    if world % compute.sep_size:
        raise UserError(
            f"sep_size {compute.sep_size} does not divide the {world} processes; start a multiple "
            f"of {compute.sep_size} with torchrun, or lower --sep_size"
        )
    if compute.use_liger_kernels and not provenance.gpus():
        raise UserError("--use_liger_kernels needs an NVIDIA GPU; there is none here. Leave it out")

"""A pre-training run: the model, the data and the optimizer, and what the run is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from tuning import config as site
from tuning.data import train_dataset
from tuning.engine.config import DataConfig, EngineConfig, ModelConfig, PretrainConfig
from tuning.engine.sources import kind_of
from tuning.flags import build
from tuning.runs import provenance, ranks
from tuning.runs.content import file_hash, weights_hash
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import digest
from tuning.runs.rundir import SHORT
from tuning.schema import mapping, override, read_yaml
from tuning.settings import RunConfig, hashed_settings
from tuning.weights.shape import Shape, linears

PRETRAIN_PARTS: tuple[type, ...] = (ModelConfig, DataConfig, PretrainConfig, EngineConfig)
PRESETS = Path(__file__).with_name("presets.yaml")
_FREE: dict[str, Any] = {"hashed": False}


@dataclass(frozen=True, kw_only=True)
class PretrainRunConfig(RunConfig):
    """One run of the engine: from fresh weights, tokenizer and chat template included, or on from
    a model that there is.
    """

    kind = "pretrain"
    model: str = field(metadata=_FREE)
    """The run's name: a model of collections.yaml that this run makes, or an experiment's."""
    registered: bool = field(metadata=_FREE)
    """Whether `model` stands in collections.yaml."""
    chat_template: str
    """A file of tuning/data/chat_templates without its ending."""
    data_version: str
    """Changes when the data do."""
    source: str | None = field(default=None, metadata=_FREE)
    """The folder or hub id of the weights that are trained on; None: fresh ones."""
    base_hash: str | None = None
    """Of those weights."""
    brought: bool = field(default=False, metadata=_FREE)
    """Whether the samples come from a program, and not from what `data` names."""
    is_default: bool = field(default=False, metadata=_FREE)
    """Whether all settings are those of the model in collections.yaml."""
    shape: ModelConfig
    data: DataConfig
    training: PretrainConfig
    engine: EngineConfig = field(metadata=_FREE)

    @property
    def hashed(self) -> dict[str, Any]:
        """The settings that change the result."""
        found: dict[str, Any] = hashed_settings(self)
        training, data = found["training"], found["data"]
        if self.source is not None:
            del found["shape"]
        for name in ("data_path", "validation_data_path", "validation_split"):
            if not (name == "validation_split" and data[name]):
                del data[name]
        mixed = self.shape.use_moe and self.source is None
        packed = self.training.max_tokens_per_gpu is not None
        if packed:
            del training["total_batch_size"]
        elif not mixed:
            del training["batch_size"]
        if not mixed:
            # Among experts, the loss that balances them is taken over a micro-batch.
            del training["router_aux_loss_coef"]
            if self.data.on_long != "truncate":
                del training["max_tokens_per_gpu"]
            training["packed"] = packed
        if not self.training.osft:
            del training["osft_unfreeze_rank_ratio"], training["osft_target_patterns"]
        if self.training.loss != "focal":
            del training["focal_alpha"], training["focal_gamma"]
        training |= {"training_mode": self.training.mode, "min_lr": self.training.last_lr}
        return found

    @property
    def artifact_form(self) -> str:
        """The engine trains, and leaves, full weights."""
        return "full"

    @property
    def run_name(self) -> str:
        """`{model}`, with `-{hash8}` behind unless all settings are those of collections.yaml."""
        return self.model if self.is_default else f"{self.model}-{self.hash[:SHORT]}"

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence."""
        return self.training.seq_len or self.shape.block_size

    @property
    def global_batch(self) -> int:
        """Samples of an optimizer step over all ranks."""
        t = self.training
        return t.batch_size if t.max_tokens_per_gpu else t.total_batch_size // self.seq_len


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
    chosen = preset(given.pop("preset", None)) | override(PRETRAIN_PARTS, given, where)
    template = entry.chat_template or "chatml"
    default = replace(_config(model, True, template, chosen), is_default=True)
    if not values:
        return default
    made = _config(model, True, template, beside(chosen, values))
    return replace(made, is_default=made.hashed == default.hashed)


def experiment_config(
    name: str, values: Mapping[str, Any], *, samples: str | None = None
) -> PretrainRunConfig:
    """A run by the name of an experiment, of settings that are all given.

    `samples` tells those that a program brings from others; None: the settings name the data.
    """
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"exp_name is '{name}'; it must be a name for a folder")
    return _config(name, False, "chatml", values, samples)


def beside(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` over those of a preset or of collections.yaml; data that are named take the place of
    the corpus there.
    """
    named = values.get("data_path") or values.get("use_mock_data")
    return {k: v for k, v in base.items() if not (named and k == "corpus")} | dict(values)


@cache
def _presets() -> dict[str, Any]:
    return mapping(read_yaml(PRESETS), PRESETS.name)


def preset(name: str | None) -> dict[str, Any]:
    """The settings of a preset by its name."""
    if name is None:
        return {}
    choose("preset", name, sorted(_presets()))
    return override(PRETRAIN_PARTS, _presets()[name], f"presets.yaml: {name}")


def _config(
    name: str, registered: bool, template: str, chosen: Mapping[str, Any],
    samples: str | None = None,
) -> PretrainRunConfig:  # fmt: skip
    chosen = dict(chosen)
    location = chosen.pop("model_name_or_path", None)
    data, training = build(DataConfig, chosen), build(PretrainConfig, chosen)
    shape = build(ModelConfig, chosen)
    training = replace(training, seq_len=training.seq_len or shape.block_size)
    source, base_hash = _weights(location)
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
        engine=build(EngineConfig, chosen),
    )
    check(made)
    return made


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
    """Where the weights of a model lie, and their hash: a folder, a model of collections.yaml, or a
    hub id.
    """
    if location is None:
        return None, None
    if Path(location).is_dir():
        folder = Path(location).resolve()
        return str(folder), weights_hash(folder)
    entry = site.collections().model(location)
    if entry.from_run:
        from tuning.runs.rundir import locate

        made = pretrain_config(entry.from_run)
        return str(locate(site.models_dir(), made.run_name, made.hash) / "model"), made.hash
    if entry.path:
        return str(entry.path), weights_hash(Path(entry.path))
    return entry.source, digest({"hub": entry.source})


def _version(data: DataConfig) -> str:
    """Changes when the data do."""
    if data.corpus is not None:
        return train_dataset.version(site.DatasetEntry(name=data.corpus, loader=data.corpus), "sft")
    paths = [p for p in (data.data_path, data.validation_data_path) if p]
    return "+".join(file_hash(Path(path)) for path in paths) or "mock"


def check(config: PretrainRunConfig) -> None:
    """Raise UserError for settings that contradict each other, before anything is built."""
    data, t, shape = config.data, config.training, config.shape
    sources = [
        name
        for name, there in (
            ("--corpus", data.corpus), ("--use_mock_data", data.use_mock_data),
            ("--data_path", data.data_path), ("samples", config.brought),
        )
        if there
    ]  # fmt: skip
    if len(sources) != 1:
        raise UserError(
            f"{' and '.join(sources) or 'nothing'} to train on; give one of --use_mock_data, "
            "--data_path FILE, or --model with a model that is made here (tiny)"
        )
    if data.corpus and t.mode != "step":
        raise UserError("a corpus that is made here has no end; give --max_steps")
    if data.corpus and config.source is None and shape.vocab_size < data.tokenizer_vocab_size:
        raise UserError(
            f"vocab_size {shape.vocab_size} is below tokenizer_vocab_size "
            f"{data.tokenizer_vocab_size}; every token needs a row of the embedding."
        )
    if config.source is None and config.seq_len > shape.block_size:
        raise UserError(
            f"seq_len {config.seq_len} is above block_size {shape.block_size}, the longest "
            "sequence of the model"
        )
    _check_file(config)
    _check_batch(config)
    if t.osft and config.source is None:
        raise UserError("--osft keeps what a model knows; give one with --model_name_or_path")


def _check_file(config: PretrainRunConfig) -> None:
    """What a data file needs to be read."""
    path = config.data.data_path
    if path is None:
        return
    kind = kind_of(path)
    if kind == "text" and config.source is None and config.data.tokenizer is None:
        raise UserError(f"'{path}' is text; say how to read it with --tokenizer ID_OR_FOLDER")
    if kind == "rows" and config.training.max_tokens_per_gpu is None:
        raise UserError(
            f"'{path}' holds rows of different lengths; say how many tokens fit a pass with "
            "--max_tokens_per_gpu, and how many samples make a step with --batch_size"
        )


def check_place(engine: EngineConfig) -> None:
    """Raise UserError for what the processes and devices here cannot do."""
    world = ranks.world_size()
    if world % engine.sep_size:
        raise UserError(
            f"sep_size {engine.sep_size} does not divide the {world} processes; start a multiple "
            f"of {engine.sep_size} with torchrun, or lower --sep_size"
        )
    if engine.use_liger_kernels and not provenance.gpus():
        raise UserError("--use_liger_kernels needs an NVIDIA GPU; there is none here. Leave it out")


def _check_batch(config: PretrainRunConfig) -> None:
    t, sep = config.training, config.engine.sep_size
    if t.max_tokens_per_gpu is None and t.total_batch_size % config.seq_len:
        near = max(1, round(t.total_batch_size / config.seq_len)) * config.seq_len
        raise UserError(
            f"total_batch_size {t.total_batch_size} is not a multiple of seq_len "
            f"{config.seq_len}; {near} is the nearest"
        )
    for name, value in (
        ("seq_len", config.seq_len),
        ("num_attention_heads", config.shape.num_attention_heads),
        ("num_experts", config.shape.num_experts if config.shape.use_moe else None),
    ):
        if config.source is None and value and value % sep:
            raise UserError(f"sep_size {sep} does not divide {name} {value}; change one of them")
    data = config.data
    if data.validation_data_path and data.validation_split:
        raise UserError("give --validation_data_path or --validation_split, not both")
    held_out = data.validation_data_path or data.validation_split
    if config.engine.save_best_val_loss and not held_out:
        raise UserError("--save_best_val_loss needs --validation_split or --validation_data_path")

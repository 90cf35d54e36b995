"""What a plan will write to disk, before it is started: models and sweetspots that stay,
checkpoints to resume from that do not, answers of evaluations.

Counted from the shapes of the models and the configs of the stages; no torch. An upper bound where
something is only decided later: every sweetspot is reached, all runs are under way at once.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.engine.run_config import shape_of
from tuning.launchers.prefetch import snapshot_folder
from tuning.phases.work import evaluation_of, run_of
from tuning.plan import Plan, Stage, standing
from tuning.runs import manifest, provenance
from tuning.runs.manifest import KEPT
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.store import checkpoint_name
from tuning.training.config import optimizer_name
from tuning.training.config_training import PTRunConfig, SFTRunConfig
from tuning.weights.base import MODEL, base_directory
from tuning.weights.config import LoraConfig, ModelLoadConfig, in_half
from tuning.weights.shape import BFLOAT16, FLOAT32, Adapter, Shape, adapter_of, read_shape

OPTIMIZER_BYTES = {
    "adamw_torch": 8.0, "adamw_torch_fused": 8.0, "paged_adamw_32bit": 8.0, "adamw_8bit": 2.1,
    "paged_adamw_8bit": 2.1, "adafactor": 0.5, "sgd": 0.0,
}  # fmt: skip
"""State of a trained parameter: two moments of 4 bytes, or of 1 byte and their scales."""
_STATE_HEADER = 830
"""Bytes that optimizer.pt takes to name one parameter's state."""
_TRAINER_FILES = 23_000
"""training_args.bin, rng_state.pth and scheduler.pt of a checkpoint."""
_STEP = 400
"""Bytes of trainer_state.json for one logged step."""
_TOKEN = 45
"""Bytes of tokenizer.json an entry, of tokenizers that are trained here."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one stage writes, in bytes."""

    adapters: tuple[int, ...] = ()
    full_models: tuple[int, ...] = ()
    sweetspots: tuple[int, ...] = ()
    checkpoints: int = 0
    evaluation: int = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan writes, in bytes, and what there is room for."""

    adapters: int
    adapter_count: int
    full_models: int
    full_model_count: int
    sweetspots: int
    sweetspot_count: int
    checkpoints: int
    """To resume from; there while runs are under way, at most this much at a time."""
    evaluations: int
    """Answers and scores, roughly: as if every answer were of full length."""
    unknown: tuple[str, ...]
    """Models that are not counted: no config.json of a known architecture is here."""
    free: int
    """Room under TUNING_HOME."""

    @property
    def models(self) -> int:
        """The folders model/ of the runs that are still to be trained."""
        return self.adapters + self.full_models

    @property
    def stays(self) -> int:
        """Everything but the checkpoints to resume from."""
        return self.models + self.sweetspots + self.evaluations

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it at once."""
        return self.stays + self.checkpoints <= self.free


def estimate(
    plan: Plan, home: Path, *, parallel: int | None = None, cuda: bool | None = None
) -> Estimate:
    """What the stages of a plan that are not done will write under `home`, in bytes.

    At most `parallel` runs are under way at once (None: all of them). `cuda` says whether stages
    run on GPUs, where merged weights and optimizer states are smaller (None: as on this machine).
    Raises UserError for a stage whose settings or data are no longer valid.
    """
    counter = _Counter(plan, home, bool(provenance.gpus()) if cuda is None else cuda)
    shares = [counter.share(stage) for stage in plan.stages]
    adapters = [size for share in shares for size in share.adapters]
    full = [size for share in shares for size in share.full_models]
    sweetspots = [size for share in shares for size in share.sweetspots]
    largest = sorted((share.checkpoints for share in shares), reverse=True)
    return Estimate(
        adapters=sum(adapters),
        adapter_count=len(adapters),
        full_models=sum(full),
        full_model_count=len(full),
        sweetspots=sum(sweetspots),
        sweetspot_count=len(sweetspots),
        checkpoints=sum(largest[:parallel]),
        evaluations=sum(share.evaluation for share in shares),
        unknown=tuple(counter.unknown),
        free=_free(home),
    )


def describe(found: Estimate) -> str:
    """An estimate in one line, and one more where something does not fit or is not known."""
    parts = [
        f"{count} {name}{'s' if count > 1 else ''} {in_words(size)}"
        for name, count, size in (
            ("adapter", found.adapter_count, found.adapters),
            ("full model", found.full_model_count, found.full_models),
            ("sweetspot", found.sweetspot_count, found.sweetspots),
        )
        if count
    ]
    if found.evaluations:
        parts.append(f"answers {in_words(found.evaluations)}")
    least = "at least" if found.unknown else "about"
    listed = f" ({', '.join(parts)})" if parts else ""
    lines = [
        f"writes {least} {in_words(found.stays)} that stay{listed} and up to "
        f"{in_words(found.checkpoints)} while it runs; {in_words(found.free)} are free under "
        "TUNING_HOME"
    ]
    if found.unknown:
        lines.append(
            f"not counted: what is trained from {', '.join(found.unknown)}, "
            "of no known shape here; 'tuning prefetch' fetches models of the hub"
        )
    if not found.fits:
        short = in_words(found.stays + found.checkpoints - found.free)
        lines.append(
            f"warning: that does not fit, {short} are lacking: free some ('tuning clean'), or "
            "point TUNING_HOME at another disk"
        )
    return "\n".join(lines)


def in_words(size: int) -> str:
    """Bytes for people, in powers of 1000: `1.2 GB`."""
    value, units = float(size), ["bytes", "KB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if value >= 99.5 else f"{value:.2g} {units[0]}"


def checkpoint_bytes(shape: Shape, made: Adapter, optimizer: str, steps: int) -> int:
    """One checkpoint to resume an adapter's training from, after `steps` optimizer steps: the
    adapter, the optimizer's state, the tokenizer, and the Trainer's records.
    """
    state = int(OPTIMIZER_BYTES[optimizer] * made.trained) + _STATE_HEADER * made.tensors
    return made.bytes + state + shape.tokenizer + _TRAINER_FILES + _STEP * steps


class _Counter:
    """Goes through the stages of a plan and notes the models whose shape is not known."""

    def __init__(self, plan: Plan, home: Path, cuda: bool) -> None:
        self.plan = plan
        self.home = home
        self.cuda = cuda
        self.unknown: list[str] = []

    def share(self, stage: Stage) -> Share:
        """What a stage will still write; nothing where it is done or skipped."""
        found = standing(self.plan, stage, self.home)
        if found.state != "pending" or not stage.has_work:
            return Share()
        answers = 0
        if "infer" in stage.phases and not (found.evaluation and found.evaluation.done("infer")):
            answers = self._answers(stage)
        if "train" not in stage.phases or (found.run is not None and found.run.done("train")):
            return Share(evaluation=answers)
        count = {"pretrain": self._pretrain, "sft": self._sft, "pft": self._preference}[stage.kind]
        trained = count(stage, found.run)
        if trained is None:
            self.unknown += [n for n in [self._model(stage)] if n not in self.unknown]
            return Share(evaluation=answers)
        return Share(**trained, evaluation=answers)

    def _pretrain(self, stage: Stage, _run: RunDirectory | None) -> dict[str, Any]:
        """Whole weights in float32; a checkpoint has AdamW's two moments beside them."""
        config = run_of(stage)
        shape = shape_of(config.shape, _TOKEN * config.data.tokenizer_vocab_size)
        weights = FLOAT32 * shape.parameters
        count = _at_a_time(config.training.max_steps, config.output.save_every_steps)
        return {"full_models": (weights + shape.tokenizer,), "checkpoints": count * 3 * weights}

    def _sft(self, stage: Stage, run: RunDirectory | None) -> dict[str, Any] | None:
        config = run_of(stage)
        if (shape := self._shape(config.model)) is None:
            return None
        folders = [run.path / checkpoint_name(rule.label) for rule in config.rules] if run else []
        reached = sum(manifest.is_whole(folder) for folder in folders)
        left = len(config.rules) - reached
        if config.artifact_form == "full":
            return self._whole(config, shape, stage, left)
        made = adapter_of(shape, config.lora)
        return self._kept(config, shape, made, stage) | {"sweetspots": (made.bytes,) * left}

    def _whole(
        self, config: SFTRunConfig, shape: Shape, stage: Stage, sweetspots: int
    ) -> dict[str, Any]:
        """Whole weights, as the base model has them; a checkpoint has them in float32, with AdamW's
        two moments beside them.
        """
        one = self._each(config) * shape.parameters + shape.tokenizer
        state = 3 * FLOAT32 * shape.parameters
        return {
            "full_models": (one,),
            "sweetspots": (one,) * sweetspots,
            "checkpoints": _at_a_time(_steps(config, stage), config.training.save_steps) * state,
        }

    def _preference(self, stage: Stage, _run: RunDirectory | None) -> dict[str, Any] | None:
        config = run_of(stage)
        if (shape := self._shape(config.model)) is None:
            return None
        return self._kept(config, shape, adapter_of(shape, config.lora), stage)

    def _kept(
        self, config: SFTRunConfig | PTRunConfig, shape: Shape, made: Adapter, stage: Stage
    ) -> dict[str, Any]:
        """The model of a run, and its checkpoints at most at a time."""
        t, steps = config.training, _steps(config, stage)
        optimizer = optimizer_name(t.optimizer, cuda=self.cuda)
        one = checkpoint_bytes(shape, made, optimizer, steps)
        found: dict[str, Any] = {"checkpoints": _at_a_time(steps, t.save_steps) * one}
        if config.artifact_form == "adapter":
            return found | {"adapters": (made.bytes + shape.tokenizer,)}
        return found | {"full_models": (self._merged(config, shape) + shape.tokenizer,)}

    def _merged(self, config: SFTRunConfig | PTRunConfig, shape: Shape) -> int:
        """Whole weights in the base model's precision; what was trained whole is float32."""
        each = self._each(config)
        whole = adapter_of(
            shape, LoraConfig(target_modules=(), full_modules=config.lora.full_modules)
        )
        return each * shape.parameters + (FLOAT32 - each) * whole.trained

    def _each(self, config: SFTRunConfig | PTRunConfig) -> int:
        """Bytes of a weight as the base model is loaded."""
        return BFLOAT16 if in_half(config.model.dtype, cuda=self.cuda) else FLOAT32

    def _shape(self, model: ModelLoadConfig) -> Shape | None:
        """The shape of a base model: of its folder where it is here, or of its settings."""
        if (directory := base_directory(model)) is None:
            folder = Path(model.path) if model.path else snapshot_folder(model.source)
            return read_shape(folder) if folder else None
        planned = next((s for s in self.plan.stages if s.hash == model.base_hash), None)
        shape = read_shape(directory.path / MODEL)
        if shape is not None or planned is None:
            return shape
        config = run_of(planned)
        return shape_of(config.shape, _TOKEN * config.data.tokenizer_vocab_size)

    def _model(self, stage: Stage) -> str:
        return str(run_of(stage).model.model)

    def _answers(self, stage: Stage) -> int:
        """Bytes of responses.jsonl: about 4 a token."""
        s = evaluation_of(stage).sampling
        return s.prompts * (300 + s.n_samples * 4 * s.max_new_tokens)


def _steps(config: SFTRunConfig | PTRunConfig, stage: Stage) -> int:
    """Optimizer steps of a stage; of a fork, at most."""
    if isinstance(config, SFTRunConfig):
        return config.steps
    return config.steps(stage.train_size or stage.total_data or 1)


def _at_a_time(steps: int | None, save_steps: int) -> int:
    """How many checkpoints of a run there are at most: those that are kept and the next one."""
    return KEPT + 1 if steps is None else min(KEPT + 1, math.ceil(steps / save_steps))


def _free(home: Path) -> int:
    """Bytes that are free under `home`, which need not be there yet."""
    there = next(path for path in (home, *home.parents) if path.exists())
    return shutil.disk_usage(there).free

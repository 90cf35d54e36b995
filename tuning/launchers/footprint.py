"""Whether the disk has room for a plan, before it is started: weights times bytes times count.

Counted are the models and sweetspots that stay, the checkpoints to resume from, and the answers of
evaluations, as if every sweetspot were reached. Tokenizers and records are not; MARGIN is for them.
No torch.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from tuning.engine.run_config import shape_of
from tuning.phases.work import evaluation_of, run_of
from tuning.plan import Plan, Stage, standing
from tuning.runs import manifest, provenance
from tuning.runs.rundir import RunDirectory
from tuning.sweetspots.store import checkpoint_name
from tuning.training.config import engine_weights, state_bytes
from tuning.weights.base import MODEL, base_directory
from tuning.weights.config import ModelLoadConfig, in_half
from tuning.weights.hub import snapshot_folder
from tuning.weights.shape import BFLOAT16, FLOAT32, Shape, adapter_of, read_shape

MARGIN = 1.1
"""Free space that a plan needs, as a multiple of the bytes that are counted."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """What the training of one stage still writes, in bytes."""

    model: int
    sweetspots: tuple[int, ...] = ()
    checkpoints: int
    """To resume from, at most at a time; they are gone when the run is done."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a plan still writes, in bytes."""

    models: tuple[int, ...]
    sweetspots: tuple[int, ...]
    answers: int
    """As if every answer were of full length."""
    checkpoints: int
    """Of the runs that are under way at once, at most."""
    unknown: tuple[str, ...]
    """Models that are not counted: no config.json of a known architecture is here."""
    free: int
    """Room under TUNING_HOME."""

    @property
    def stays(self) -> int:
        """Everything but the checkpoints to resume from."""
        return sum(self.models) + sum(self.sweetspots) + self.answers

    @property
    def short(self) -> int:
        """Bytes that are lacking; 0 where the plan fits."""
        return max(0, int(MARGIN * (self.stays + self.checkpoints)) - self.free)


def estimate(
    plan: Plan, home: Path, *, parallel: int | None = None, cuda: bool | None = None
) -> Estimate:
    """What the stages of a plan that are not done will write under `home`.

    At most `parallel` runs are under way at once (None: all of them). `cuda` says whether stages
    run on GPUs, where models that are written whole are in bfloat16 (None: as on this machine).
    Raises StageFailed for a stage that was planned by another version of the code.
    """
    cuda = bool(provenance.gpus()) if cuda is None else cuda
    shares, unknown, answers = [], [], 0
    for stage in plan.stages:
        found = standing(plan, stage, home)
        if found.state != "pending" or not stage.has_work:
            continue
        if "infer" in stage.phases and not (found.evaluation and found.evaluation.done("infer")):
            s = evaluation_of(stage).sampling
            answers += s.prompts * (300 + s.n_samples * 4 * s.max_new_tokens)
        if "train" in stage.phases and not (found.run and found.run.done("train")):
            share = _share(plan, stage, found.run, cuda)
            shares += [share] if share else []
            unknown += [] if share else [run_of(stage).model.model]
    there = next(path for path in (home, *home.parents) if path.exists())
    return Estimate(
        models=tuple(share.model for share in shares),
        sweetspots=tuple(size for share in shares for size in share.sweetspots),
        answers=answers,
        checkpoints=sum(sorted((s.checkpoints for s in shares), reverse=True)[:parallel]),
        unknown=tuple(dict.fromkeys(unknown)),
        free=shutil.disk_usage(there).free,
    )


def describe(found: Estimate) -> str:
    """An estimate in one line, and one more where something does not fit or is not known."""
    parts = [
        f"{len(sizes)} {name}{'s' if len(sizes) > 1 else ''} {in_words(sum(sizes))}"
        for name, sizes in (("model", found.models), ("sweetspot", found.sweetspots))
        if sizes
    ]
    parts += [f"answers {in_words(found.answers)}"] if found.answers else []
    listed = f" ({', '.join(parts)})" if parts else ""
    lines = [
        f"writes {'at least' if found.unknown else 'about'} {in_words(found.stays)} that stay"
        f"{listed} and up to {in_words(found.checkpoints)} of checkpoints while it runs; "
        f"{in_words(found.free)} are free under TUNING_HOME"
    ]
    if found.unknown:
        lines.append(
            f"not counted: what is trained from {', '.join(found.unknown)}, whose size is not "
            "known here; `tuning prefetch` fetches models of the hub"
        )
    if found.short:
        lines.append(
            f"warning: not enough disk space: {in_words(found.short)} short; run `tuning clean`, "
            "or point TUNING_HOME at another disk"
        )
    return "\n".join(lines)


def in_words(size: int) -> str:
    """Bytes for people, in powers of 1000: `1.2 GB`."""
    value, units = float(size), ["bytes", "KB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        del units[0]
    return f"{value:.0f} {units[0]}" if value >= 99.5 else f"{value:.2g} {units[0]}"


def _share(plan: Plan, stage: Stage, run: RunDirectory | None, cuda: bool) -> Share | None:
    """What a training writes; None where the size of its base is not known.

    What is trained is float32: adapters, and checkpoints, which have the optimizer's moments too.
    Whole models are as the base is loaded.
    """
    config = run_of(stage)
    if stage.kind == "pretrain":
        weights, o = FLOAT32 * shape_of(config.shape).parameters, config.output
        count = _at_a_time(config.training.max_steps, o.save_every_steps, o.keep_checkpoints)
        return Share(model=weights, checkpoints=count * 3 * weights)
    if (shape := _shape_of_base(plan, config.model)) is None:
        return None
    t, adapter = config.training, adapter_of(shape, config.lora)
    half = in_half(config.model.dtype, cuda=cuda)
    model = (BFLOAT16 if half else FLOAT32) * shape.parameters
    checkpoint = FLOAT32 * adapter.saved + state_bytes(t.optimizer, cuda=cuda) * adapter.trained
    if config.trainer == "engine":
        whole = engine_weights(shape, config.engine)
        checkpoint = FLOAT32 * (whole.saved + 2 * whole.trained)
    elif config.lora.full:
        checkpoint = (FLOAT32 + state_bytes(t.optimizer, cuda=cuda)) * shape.parameters
    elif config.artifact_form == "adapter":
        model = FLOAT32 * adapter.saved
    rules = config.rules if stage.kind == "sft" else []
    reached = [r for r in rules if run and manifest.is_whole(run.path / checkpoint_name(r.label))]
    size = stage.train_size or stage.total_data or 1
    steps = config.steps if stage.kind == "sft" else config.steps(size)
    return Share(
        model=model,
        sweetspots=(model,) * (len(rules) - len(reached)),
        checkpoints=_at_a_time(steps, t.save_steps, manifest.KEPT) * checkpoint,
    )


def _at_a_time(steps: int | None, every: int, kept: int) -> int:
    """How many checkpoints there are at most: those that are kept, and one that is written."""
    return kept + 1 if steps is None else min(kept + 1, math.ceil(steps / every))


def _shape_of_base(plan: Plan, model: ModelLoadConfig) -> Shape | None:
    """The shape of a base model: of its folder where it is here, or of its settings."""
    directory = base_directory(model)
    if directory is None:
        folder = Path(model.path) if model.path else snapshot_folder(model.source)
        return read_shape(folder) if folder else None
    if (shape := read_shape(directory.path / MODEL)) is not None:
        return shape
    planned = next((s for s in plan.stages if s.hash == model.base_hash and s.run), None)
    return shape_of(run_of(planned).shape) if planned else None

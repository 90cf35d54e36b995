"""A stage of an experiment as plain data, and its state on disk.

A plan is a list of stages, in order. It is written to plan.json, from which the report reads which
runs belong to an experiment; the launchers read from the run directories what is done, what is
skipped and what is still to do. A stage carries the resolved configs of its run and its evaluation,
so that whoever starts it looks nothing up again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tuning.runs import atomic
from tuning.runs.errors import Skipped, StageFailed, UserError
from tuning.runs.identity import FORMAT, digest
from tuning.runs.rundir import RunDirectory, locate
from tuning.sweetspots.store import find_sweetspot

REMAINING = "remaining"
"""Stands in a fork's name for its size until its parent's checkpoint is there."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run and the phases of it that are asked for: one command, one job."""

    name: str
    """The run's name, unique in the plan; of a fork with `remaining` for its size."""
    role: str
    """pretrain, base, sft, sweetspot, fork, pt, reference_sft, reference_pt or report."""
    hash: str
    """Of the run that is trained, or of the artifact that is evaluated."""
    parents: tuple[str, ...] = ()
    """Stages that must have ended well before."""
    trains: bool = True
    """Whether there is a run under models/."""
    run: dict[str, Any] | None = None
    """The config of the run that is trained, as JSON values."""
    evaluation: dict[str, Any] | None = None
    """The config of the evaluation, as JSON values."""
    phases: tuple[str, ...] = ()
    """Of train, infer and evaluate, those that are asked for; none: the stage is only a row of the
    report."""
    artifact: str = ""
    """What is evaluated by a stage that trains nothing; names its outputs."""
    task: str = ""
    """The task of the evaluation."""
    evaluation_hash: str | None = None
    evaluation_suffix: str = ""
    script: str = ""
    """The entry point that carries it out: a file of tuning/."""
    joinable: bool = False
    """Whether several processes can train it together."""
    parent: str | None = None
    """The stage whose artifact this one continues or belongs to."""
    sweetspot: str | None = None
    """The label of the parent's checkpoint."""
    pft_method: str | None = None
    train_size: int | None = None
    total_data: int | None = None
    seed: int | None = None
    wide: bool = False
    """Whether it runs alone, with all cores."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Stage:
        """Back from JSON; fields of a newer version are ignored."""
        known = {entry.name for entry in fields(cls)}
        found: Any = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k in known
        }
        return cls(**found)

    @property
    def has_work(self) -> bool:
        """Whether there is anything to start; otherwise the stage is only a row of the report."""
        return bool(self.phases)

    @property
    def kind(self) -> str:
        """What it asks of a machine: pretrain, sft, pft, evaluation or report."""
        return _KINDS[self.role]

    @property
    def key(self) -> str:
        """Twelve digits that change when anything about the stage does."""
        return digest(asdict(self))[:12]


_KINDS = {
    "pretrain": "pretrain", "base": "evaluation", "sweetspot": "evaluation", "sft": "sft",
    "reference_sft": "sft", "fork": "pft", "pt": "pft", "reference_pt": "pft", "report": "report",
}  # fmt: skip
KINDS = tuple(dict.fromkeys(_KINDS.values()))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How a stage stands: pending, done or skipped, and where its directories are."""

    state: str
    reason: str = ""
    run: RunDirectory | None = None
    evaluation: RunDirectory | None = None
    train_size: int | None = None
    cause: str = ""
    """Of a skipped stage: met_by_base, unreached or no_budget_left."""


@dataclass(kw_only=True)
class Plan:
    """An experiment: its name, its stages in order, and the choices that it was made from."""

    experiment: str
    stages: tuple[Stage, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """A stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        """As plan.json has it."""
        stages = [asdict(stage) for stage in self.stages]
        return {
            "format": FORMAT, "experiment": self.experiment, "about": self.about, "stages": stages,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Back from plan.json; UserError for one of another format."""
        require_format(value, f"experiment '{value.get('experiment')}'")
        stages = [Stage.from_json(entry) for entry in value["stages"]]
        return cls(experiment=value["experiment"], stages=tuple(stages), about=dict(value["about"]))


def save_plan(folder: Path, plan: Plan) -> None:
    """Write plan.json; UserError where a plan of another format is there."""
    path = folder / "plan.json"
    if (found := atomic.read_json(path)) is not None:
        require_format(found, f"experiment '{plan.experiment}'")
    atomic.write_json(path, plan.to_json())


def require_format(value: Mapping[str, Any], what: str) -> None:
    """Raise UserError for a JSON file that another version of the code wrote."""
    if value.get("format") != FORMAT:
        raise UserError(
            f"{what} was made by another version of tuning (format {value.get('format', 1)}; this "
            f"one has {FORMAT}). It is left as it is: use that version for it, or choose another "
            "--experiment name."
        )


def write_stage(path: Path, stage: Stage) -> None:
    """The file that a stage is started with."""
    atomic.write_json(path, {"format": FORMAT, "stage": asdict(stage)})


def read_stage(path: Path) -> Stage:
    """A stage from the file that `write_stage` made; UserError for any other file."""
    try:
        found = atomic.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is not the file of a stage ({error}).") from None
    if not isinstance(found, dict) or "stage" not in found:
        raise UserError(f"'{path}' is not the file of a stage; launchers write such files.")
    require_format(found, f"'{path}'")
    return Stage.from_json(found["stage"])


def standing(plan: Plan, stage: Stage, home: Path) -> Standing:
    """How a stage stands in the run directories under `home`; never writes."""
    name, size = stage.name, stage.train_size
    if stage.sweetspot is not None:
        parent = standing(plan, plan.stage(stage.parent or ""), home).run
        assert parent is not None
        try:
            spot = find_sweetspot(parent, stage.sweetspot)
            if stage.role == "fork":
                size = spot.left_of(stage.total_data or 0)
                name = name.replace(f"{REMAINING}-of-{stage.total_data}", REMAINING)
                name = name.replace(REMAINING, str(size))
        except Skipped as reason:
            return Standing(state="skipped", reason=str(reason), cause=reason.cause)
        except (StageFailed, UserError):
            return Standing(state="pending")
    run = RunDirectory(locate(home / "models", name, stage.hash)) if stage.trains else None
    evaluation = None
    if stage.evaluation_hash is not None:
        artifact = run.name if run is not None else stage.artifact
        root = home / "outputs" / stage.task
        evaluation = RunDirectory(
            locate(root, artifact + stage.evaluation_suffix, stage.evaluation_hash)
        )
    done = all(_done(phase, run, evaluation) for phase in stage.phases)
    return Standing(
        state="done" if done else "pending", run=run, evaluation=evaluation, train_size=size
    )


def sweetspot_ready(plan: Plan, stage: Stage, home: Path) -> bool:
    """Whether the checkpoint that a stage starts from is there, be its parent done or not."""
    if stage.sweetspot is None:
        return False
    above = plan.stage(stage.parent or "")
    directory = RunDirectory(locate(home / "models", above.name, above.hash))
    try:
        find_sweetspot(directory, stage.sweetspot)
    except (Skipped, StageFailed, UserError):
        return False
    return True


def _done(phase: str, run: RunDirectory | None, evaluation: RunDirectory | None) -> bool:
    directory = run if phase == "train" else evaluation
    return directory is not None and directory.done(phase)


def descendants(stages: Iterable[Stage], name: str) -> set[str]:
    """The names of all stages that stand on one."""
    found = {name}
    for stage in stages:
        if found & set(stage.parents):
            found.add(stage.name)
    return found - {name}

"""Plans and stages of an experiment as plain data, and the state of stages on disk.

A plan is an ordered list of stages. It is written to plan.json, from which the report reads which
runs belong to an experiment; launchers read from the run directories which stages are done, skipped
or pending. A stage carries the resolved configs of its run and its evaluation, so that starting it
needs nothing but the stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tuning.flags import restore
from tuning.runs import atomic, measured
from tuning.runs.errors import Skipped, StageFailed, UserError, choose
from tuning.runs.identity import FORMAT, digest
from tuning.runs.json_text import NotJSON
from tuning.runs.names import require_file_name
from tuning.runs.rundir import RunDirectory, locate
from tuning.sweetspots.store import find_sweetspot

REMAINING = "remaining"
"""Placeholder for the size in a fork's name, until the checkpoint that it starts from exists."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One run and its requested phases: one command, one job."""

    name: str
    """The run's name, unique in the plan; a fork has `remaining` in place of its size."""
    role: str
    """pretrain, base, sft, sweetspot, fork, pt, reference_sft, reference_pt or report."""
    hash: str
    """Hash of the run that is trained, or of the artifact that is evaluated."""
    parents: tuple[str, ...] = ()
    """Stages that must be done first."""
    trains: bool = True
    """Whether the stage has a run under models/."""
    run: dict[str, Any] | None = None
    """The config of the run that is trained, as JSON values."""
    evaluation: dict[str, Any] | None = None
    """The config of the evaluation, as JSON values."""
    phases: tuple[str, ...] = ()
    """Those of train, infer, evaluate and measure to run; empty: it is only a row of the report."""
    artifact: str = ""
    """Name of the artifact evaluated by a stage that trains nothing; part of its output path."""
    task: str = ""
    """The task of the evaluation."""
    evaluation_hash: str | None = None
    evaluation_suffix: str = ""
    script: str = ""
    """The entry point that runs it: a file in tuning/."""
    joinable: bool = False
    """Whether it is trained by as many ranks as there are GPUs, unless it is told otherwise, and on
    several nodes: by the engine. TRL takes several ranks of one node, where they are asked for.
    """
    parent: str | None = None
    """The stage whose artifact this one continues or belongs to."""
    sweetspot: str | None = None
    """The label of the parent's checkpoint."""
    pft_method: str | None = None
    train_size: int | None = None
    total_data: int | None = None
    seed: int | None = None
    wide: bool = False
    """Whether it runs alone, on all cores."""
    autotune: dict[str, Any] | None = None
    """How to tune its training before it begins, as JSON values; None: not at all."""
    before_after: dict[str, Any] | None = None
    """What to measure before and after its training, as JSON values; None: nothing."""
    measure_hash: str | None = None
    """Hash of that."""
    first_prompts: int | None = None
    """Evaluate on so many of the test prompts, the first; None: on all. A later stage of the same
    evaluation does the rest.
    """

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Stage:
        """Parse a stage from JSON; unknown fields are ignored. UserError for what is no stage."""
        stage = restore(cls, value)
        require_file_name("stage", stage.name)
        choose(f"role of stage '{stage.name}':", stage.role, _KINDS)
        return stage

    @property
    def has_work(self) -> bool:
        """Whether any phase is requested; otherwise the stage is only a row of the report."""
        return bool(self.phases)

    @property
    def tunes(self) -> bool:
        """Whether it is tuned before it trains."""
        return self.autotune is not None and "train" in self.phases

    @property
    def shareable(self) -> bool:
        """Whether several ranks can train it together."""
        return self.joinable or "train" in self.phases

    @property
    def kind(self) -> str:
        """Its resource class in cluster.yaml: pretrain, sft, pft, evaluation or report."""
        return _KINDS[self.role]

    @property
    def key(self) -> str:
        """Hash over all fields of the stage, as 12 hexadecimal digits; what was added later
        counts where it is given.
        """
        values = dict(vars(self))
        for later in ("autotune", "before_after", "measure_hash", "first_prompts"):
            if values[later] is None:
                del values[later]
        return digest(values)[:12]

    @property
    def work(self) -> tuple[str, ...]:
        """What it does, phase by phase and run by run: what two stages have in common, one of them
        would do and the other wait for.
        """
        evaluation = f"{self.hash}:{self.evaluation_hash}"
        if self.first_prompts is not None:
            evaluation += f":{self.first_prompts}"
        of = {"train": self.hash, "measure": f"{evaluation}:{self.measure_hash}"}
        return tuple(f"{phase}:{of.get(phase, evaluation)}" for phase in self.phases)


_KINDS = {
    "pretrain": "pretrain",
    "base": "evaluation",
    "sweetspot": "evaluation",
    "sft": "sft",
    "reference_sft": "sft",
    "fork": "pft",
    "pt": "pft",
    "reference_pt": "pft",
    "report": "report",
}
KINDS = tuple(dict.fromkeys(_KINDS.values()))


@dataclass(frozen=True, kw_only=True)
class Standing:
    """State of a stage on disk (pending, done or skipped), and its directories."""

    state: str
    reason: str = ""
    run: RunDirectory | None = None
    evaluation: RunDirectory | None = None
    train_size: int | None = None
    cause: str = ""
    """Why it is skipped: met_by_base, unreached or no_budget_left."""


@dataclass(kw_only=True)
class Plan:
    """An experiment: its name, its stages in order, and the choices that it was made from."""

    experiment: str
    stages: tuple[Stage, ...]
    about: dict[str, Any] = field(default_factory=dict)

    def stage(self, name: str) -> Stage:
        """The stage with this name; StopIteration if there is none."""
        return next(stage for stage in self.stages if stage.name == name)

    def to_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        stages = [asdict(stage) for stage in self.stages]
        return {
            "format": FORMAT,
            "experiment": self.experiment,
            "about": self.about,
            "stages": stages,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Plan:
        """Parse the content of plan.json; UserError if it has another format, or is no plan."""
        name = value.get("experiment")
        require_format(value, f"experiment '{name}'")
        stages, about = value.get("stages"), value.get("about")
        if not (isinstance(name, str) and isinstance(stages, list) and isinstance(about, dict)):
            raise UserError(
                f"plan.json of experiment '{name}' was edited: it needs experiment, stages and "
                "about. Submit the experiment again under another --experiment name."
            )
        require_file_name("experiment", name)
        made = tuple(Stage.from_json(entry) for entry in stages)
        return cls(experiment=name, stages=made, about=about)


def save_plan(folder: Path, plan: Plan) -> None:
    """Write plan.json; UserError if a plan of another format is in its place."""
    path = folder / "plan.json"
    if (existing := atomic.read_object(path)) is not None:
        require_format(existing, f"experiment '{plan.experiment}'")
    atomic.write_json(path, plan.to_json())


def require_format(value: Mapping[str, Any], what: str) -> None:
    """Raise UserError for a JSON file that another version of the code wrote."""
    if value.get("format") != FORMAT:
        raise UserError(
            f"{what} was made by another version of tuning (format {value.get('format', 1)}; this "
            f"one has {FORMAT}). It was left unchanged: use that version, or choose "
            "another --experiment name."
        )


def write_stage(path: Path, stage: Stage) -> None:
    """Write the stage file that `--stage` reads."""
    atomic.write_json(path, {"format": FORMAT, "stage": asdict(stage)})


def read_stage(path: Path) -> Stage:
    """Read a stage file that `write_stage` wrote; UserError for any other file."""
    try:
        content = atomic.read_object(path)
    except (OSError, NotJSON) as error:
        raise UserError(f"'{path}' is not a stage file ({error}).") from None
    if content is None or "stage" not in content:
        raise UserError(f"'{path}' is not a stage file; launchers write those.")
    require_format(content, f"'{path}'")
    try:
        return Stage.from_json(content["stage"])
    except UserError as error:
        raise UserError(f"'{path}' is not a stage file ({error}).") from None


def settled_name(planned: str, train_size: int) -> str:
    """The name of a fork's directory, from its planned name and the size that it turned out to
    have: `...-remaining` and, in a grid, `...-remaining-of-3000` become `...-700`.
    """
    return re.sub(rf"-{REMAINING}(-of-\d+)?(?=-|_|$)", f"-{train_size}", planned)


def standing(plan: Plan, stage: Stage, home: Path) -> Standing:
    """The state of a stage, read from the run directories under `home`; never writes."""
    name, size = stage.name, stage.train_size
    if stage.sweetspot is not None:
        try:
            spot = find_sweetspot(_parent(plan, stage, home), stage.sweetspot)
            if stage.role == "fork":
                size = spot.left_of(stage.total_data or 0)
                name = settled_name(name, size)
        except Skipped as skipped:
            return Standing(state="skipped", reason=str(skipped), cause=skipped.cause)
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
    done = _is_done(stage, run, evaluation)
    note = ""
    if done and stage.first_prompts is not None and not (evaluation and evaluation.done("infer")):
        note = f"evaluated on the first {stage.first_prompts} prompts"
    return Standing(
        state="done" if done else "pending",
        reason=note,
        run=run,
        evaluation=evaluation,
        train_size=size,
    )


def sweetspot_ready(plan: Plan, stage: Stage, home: Path) -> bool:
    """Whether the sweetspot that a stage starts from exists, even if its parent still trains."""
    if stage.sweetspot is None:
        return False
    try:
        find_sweetspot(_parent(plan, stage, home), stage.sweetspot)
    except (Skipped, StageFailed, UserError):
        return False
    return True


def _parent(plan: Plan, stage: Stage, home: Path) -> RunDirectory:
    """The run that has the sweetspots of a stage."""
    above = plan.stage(stage.parent or "")
    return RunDirectory(locate(home / "models", above.name, above.hash))


def first_share(prompts: int) -> str:
    """The phase of an evaluation on the first prompts alone."""
    return f"first-{prompts}"


def _is_done(stage: Stage, run: RunDirectory | None, evaluation: RunDirectory | None) -> bool:
    first, wanted = stage.first_prompts, stage.measure_hash
    of_run = set(stage.phases) & {"train", measured.PHASE}
    of_evaluation = set(stage.phases) - of_run
    if not of_run <= _done_in(run, of_run):
        return False
    if run and wanted and measured.PHASE in of_run and not measured.holds(run, wanted, first):
        return False
    done = _done_in(evaluation, of_evaluation)
    return of_evaluation <= done or (first is not None and first_share(first) in done)


def _done_in(directory: RunDirectory | None, wanted: set[str]) -> frozenset[str]:
    """The phases that are done in a directory, where any is wanted."""
    return directory.phases_done() if directory and wanted else frozenset()


def descendants(stages: Iterable[Stage], name: str) -> set[str]:
    """The names of all stages that depend on one, directly or not."""
    names = {name}
    for stage in stages:
        if names & set(stage.parents):
            names.add(stage.name)
    return names - {name}

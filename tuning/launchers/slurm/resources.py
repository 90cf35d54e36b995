"""The resources that a stage asks SLURM for: slurm/cluster.yaml, read and validated, and overrides.

What the command line says of one kind of stage (`--resources sft:time=8:00:00`) overrides what it
says of all (`--time`), which overrides an environment variable (sbatch's own: SBATCH_PARTITION,
SBATCH_TIMELIMIT ...), which overrides the section of cluster.yaml for the kind of stage, which
overrides its defaults. TUNING_CLUSTER names another file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tuning import config as site
from tuning.flags import build, coerce, field_types, hints, settable
from tuning.launchers.slurm import sbatch_options
from tuning.plan import KINDS, Stage
from tuning.runs.errors import UserError, choose
from tuning.runs.identity import digest
from tuning.schema import from_mapping, read_yaml, typed

_FILE: dict[str, Any] = {"flag": False}


def _variable(name: str) -> dict[str, Any]:
    return {"variable": name}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of one job, in the units of sbatch."""

    partition: str | None = field(default=None, metadata=_variable("SBATCH_PARTITION"))
    """Partition; several separated by commas."""
    account: str | None = field(default=None, metadata=_variable("SBATCH_ACCOUNT"))
    """Account to charge."""
    qos: str | None = field(default=None, metadata=_variable("SBATCH_QOS"))
    """Quality of service."""
    gres: str | None = field(default=None, metadata=_variable("SBATCH_GRES"))
    """Generic resources per node, for example gpu:1."""
    constraint: str | None = field(default=None, metadata=_variable("SBATCH_CONSTRAINT"))
    """Required features of the nodes."""
    cpus: int = 1
    """Cores per node."""
    mem: str | None = field(default=None, metadata=_variable("SBATCH_MEM_PER_NODE"))
    """Memory per node, for example 32G."""
    time: str | None = field(default=None, metadata=_variable("SBATCH_TIMELIMIT"))
    """Time limit per start (minutes, H:M:S or D-H:M:S); a stage that needs more is requeued."""
    nodes: int = 1
    """Nodes for pre-training and SFT with the engine; torchrun joins several."""
    processes: int = 1
    """Processes per node for every stage that trains, one per GPU, joined by torchrun; unless this
    is given, the local launcher starts one for each GPU with the engine, and one with TRL.
    """
    signal_seconds: int = 120
    """Seconds before the time limit at which a stage is asked to save."""
    throttle: int | None = None
    """Maximum number of tasks of one array that run at the same time."""
    python: str | None = None
    """The Python of the jobs; by default the one that submits, and python3 in a container."""
    container: str | None = None
    """Image in which stages run, as the runtime takes it: a path, docker://..., registry#image."""
    container_runtime: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """What runs the image; pyxis is enroot through srun."""
    mounts: tuple[str, ...] = ()
    """Folders that a container sees beside TUNING_HOME and the Hugging Face cache, PATH or
    PATH:INSIDE.
    """
    offline: bool = True
    """Jobs do not access the Hugging Face hub; `tuning prefetch` downloads beforehand."""
    setup: tuple[str, ...] = field(default=(), metadata=_FILE)
    """Lines of bash to run before the stage: modules, a virtual environment."""
    options: tuple[str, ...] = field(default=(), metadata=_FILE)
    """Further options of sbatch, for example --exclusive."""

    @property
    def digest(self) -> str:
        """Recognises a submission that asks for the same."""
        return digest(vars(self))[:12]


_DEFAULTS: dict[str, Any] = {entry.name: entry.default for entry in fields(Resources)}
_JOINS = ("nodes", "processes")
LEAST_JOBS = 3
"""The smallest limit within which a plan can be submitted in portions."""
JOINED = ("pretrain", "sft", "pft")
"""Kinds of stages that several processes can train together."""
SPREAD = ("pretrain", "sft")
"""Those that can be trained on several nodes; SFT only with the engine."""
_REPORT = {
    "gres": None,
    "nodes": 1,
    "processes": 1,
    "cpus": 1,
    "time": "00:30:00",
    "container": None,
}
"""Overrides the defaults for the report, which needs no GPU, but SLURM's commands, which no
container has.
"""


class Cluster:
    """The resources of each kind of stage for one submission.

    `flags` are those of the command line; those about size, time and container do not apply to the
    report. `kinds` are the command line's settings for a kind of stage. `options` of either are
    added to those of the file.
    """

    def __init__(
        self,
        flags: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
        path: Path | None = None,
        kinds: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.path = path or cluster_path()
        environ = os.environ if environ is None else environ
        file = _read(self.path)
        self.max_submit = file.max_submit
        """Jobs that may be queued or running at a time; None for no limit."""
        self._defaults, self._stages = file.defaults, file.stages
        self._above = _from_environment(environ) | dict(flags or {})
        self._added = tuple(self._above.pop("options", ()))
        self._kinds = kinds or {}
        for kind in KINDS:
            self.resources(kind)

    def of(self, stage: Stage) -> Resources:
        """The resources of a stage."""
        return self.resources(stage.kind, joined=stage.shareable, spread=stage.joinable)

    def resources(
        self, kind: str, *, joined: bool | None = None, spread: bool | None = None
    ) -> Resources:
        """The resources of stages of a kind; `joined`: whether several processes can train each of
        them together, `spread`: on several nodes (None: if any of that kind can).
        """
        joined = kind in JOINED if joined is None else joined
        spread = kind in SPREAD if spread is None else spread
        found = self._resources(kind, () if spread else ("nodes",) if joined else _JOINS)
        if not joined and found.nodes * found.processes > 1:
            raise UserError(
                f"stages of kind {kind} are one process: nodes and processes must be 1, not "
                f"{found.nodes} and {found.processes}. Only stages that train can use several."
            )
        if not spread and found.nodes > 1:
            raise UserError(
                f"stages of kind {kind} with TRL are trained on one node: nodes must be 1, not "
                f"{found.nodes}. Only pretrain, and sft with --trainer engine, can use several."
            )
        return found

    def _resources(self, kind: str, not_flags: tuple[str, ...]) -> Resources:
        """Flags and variables for all stages do not give this kind the settings `not_flags`."""
        section, own = self._stages.get(kind, {}), self._kinds.get(kind, {})
        report = self._report(section | dict(own)) if kind == "report" else {}
        file = self._defaults | report | section
        left_out = report if kind == "report" else not_flags
        above = {k: v for k, v in self._above.items() if k not in left_out}
        options = (*file.get("options", ()), *self._added, *own.get("options", ()))
        found = _at_home(build(Resources, file | above | dict(own) | {"options": options}))
        if kind == "report":
            limit = seconds(found.time) or 2 * found.signal_seconds
            found = replace(found, signal_seconds=min(found.signal_seconds, limit // 2))
        return _checked(found)

    def _report(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """What overrides the defaults for the report. A python beside the container of the stages
        is one inside it, where the report does not run.
        """
        contained = (self._defaults | self._above).get("container") and not own.get("container")
        return _REPORT | ({"python": None} if contained else {})


def cluster_path() -> Path:
    """slurm/cluster.yaml of the checkout, or the file that TUNING_CLUSTER names."""
    return site.expanded(
        os.environ.get("TUNING_CLUSTER") or str(site.CHECKOUT / "slurm" / "cluster.yaml")
    )


_FOR_KIND = (*(entry.name for entry in settable(Resources)), "options")
FOR_KINDS = (
    "KIND:SETTING=VALUE, a setting for one kind of stage, for example sft:time=8:00:00 "
    f"evaluation:gres=gpu:1. Kinds: {', '.join(KINDS)}. Settings: {', '.join(_FOR_KIND)} (of "
    "sbatch, added to those of cluster.yaml)"
)
"""Help of --resources."""


def for_kinds(words: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{kind: {setting: value}} of `KIND:SETTING=VALUE`, as --resources takes it; an empty value
    resets a setting, and one that is a list may be given several times.
    """
    found: dict[str, dict[str, Any]] = {}
    for word in words:
        kind, colon, rest = word.partition(":")
        name, equals, value = rest.partition("=")
        if not colon or not equals:
            raise UserError(
                f"--resources has '{word}'; write KIND:SETTING=VALUE, for example sft:time=8:00:00."
            )
        choose("kind of stage in --resources:", kind, KINDS)
        choose(f"setting in --resources {kind}:", name, _FOR_KIND)
        own = found.setdefault(kind, {})
        several = field_types(Resources, name)[1]
        if name in own and not several:
            raise UserError(f"--resources gives {kind}:{name} twice; keep one.")
        given = _for_kind(kind, name, value)
        own[name] = (*own.get(name, ()), *given) if several else given
    return found


def _for_kind(kind: str, name: str, value: str) -> Any:
    where = f"--resources {kind}:"
    if not value:
        return _DEFAULTS[name]
    if name == "options":
        return sbatch(value, where + name)
    return coerce(Resources, name, value, where)


def sbatch(line: str, where: str = "--sbatch") -> tuple[str, ...]:
    """The options of sbatch in a line, checked."""
    found = sbatch_options.parsed(line, where)
    _refuse_secrets(found, where)
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings in sbatch's own environment variables."""
    found = {}
    for entry in fields(Resources):
        value = environ.get(entry.metadata.get("variable", ""))
        if value:
            found[entry.name] = value
    return found


@dataclass(frozen=True, kw_only=True)
class _File:
    """cluster.yaml as it is written."""

    defaults: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_submit: int | None = None


def _read(path: Path) -> _File:
    """The file, its settings typed and checked."""
    file = from_mapping(_File, read_yaml(path) or {}, path.name)
    for kind in file.stages:
        choose(f"kind of stage in {path.name}:", kind, KINDS)
    require_portions(file.max_submit, f"{path.name}: max_submit")
    stages = {
        kind: _settings(values, f"{path.name}: stages: {kind}")
        for kind, values in file.stages.items()
    }
    return replace(file, defaults=_settings(file.defaults, f"{path.name}: defaults"), stages=stages)


def require_portions(max_submit: int | None, where: str) -> None:
    """Raise UserError for a limit of jobs within which no plan can be submitted in portions."""
    if max_submit is not None and max_submit < LEAST_JOBS:
        raise UserError(
            f"{where} is {max_submit}; it must be at least {LEAST_JOBS}: a stage, the report after "
            "it, and the report before it, which submits them."
        )


def _settings(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings of one section; an empty value resets one of the defaults."""
    given = typed(hints(Resources), values, where, "setting")
    for name in ("setup", "options"):
        _refuse_secrets(given.get(name) or (), f"{where}: {name}")
    sbatch_options.checked(given.get("options") or (), f"{where}: options")
    return {name: _DEFAULTS[name] if value is None else value for name, value in given.items()}


_SECRET = re.compile(
    r"\b((?:\w*_)?(?:API)?(?:KEY|TOKEN|SECRET|PASSW\w*))\s*=\s*[\"']?[^\s$\"']"
    r"|(--token\b|(?<![-\w])login\b(?:\s+--(?!token)[\w-]+)*)\s+[\"']?(?!--)[^\s$\"']"
    r"|\b(hf_)\w{8}|(://)[^/\s:@]+:[^@\s$]+@|\b(bearer)\s+[^\s$\"']",
    re.IGNORECASE,
)
"""What gives a secret away, and not the name of a variable that holds one."""


def _refuse_secrets(lines: tuple[str, ...], where: str) -> None:
    """Raise UserError for lines with a secret: scripts are kept on disk and printed."""
    for line in lines:
        if found := _SECRET.search(line):
            what = next(filter(None, found.groups()))
            raise UserError(
                f"{where} gives a secret ({what}); scripts are kept on disk and printed. Export it "
                "in the shell that submits (jobs inherit it), or keep it in ~/.netrc."
            )


_TIME = re.compile(r"\d+|\d+:\d\d?(:\d\d?)?|\d+-\d+(:\d\d?){0,2}|infinite|unlimited", re.IGNORECASE)


def seconds(time: str | None) -> int | None:
    """A time limit as SLURM reads it, in seconds; None for no limit or an invalid one."""
    if time is None or not _TIME.fullmatch(time) or not time[0].isdigit():
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, more = [*parts, 0, 0][:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + more
    if len(parts) == 3:
        return (parts[0] * 60 + parts[1]) * 60 + parts[2]
    return parts[0] * 60 + (parts[1] if len(parts) > 1 else 0)


def _at_home(found: Resources) -> Resources:
    """`~` in the paths of a container is the home of who submits."""
    image, *mounts = (
        str(Path(path).expanduser()) if path.startswith("~") else path
        for path in (found.container or "", *found.mounts)
    )
    return replace(found, container=image or None, mounts=tuple(mounts))


def _checked(found: Resources) -> Resources:
    """Return it unchanged, or raise UserError."""
    for name in ("cpus", "nodes", "processes", "signal_seconds", "throttle"):
        value = getattr(found, name)
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1.")
    if found.time is not None and not _TIME.fullmatch(found.time):
        raise UserError(
            f"time is '{found.time}'; write minutes, hours:minutes:seconds or "
            "days-hours:minutes:seconds, in quotes in a YAML file."
        )
    limit = seconds(found.time)
    if limit is not None and found.signal_seconds * 2 > limit:
        raise UserError(
            f"signal_seconds is {found.signal_seconds} and time {found.time}; a stage would be "
            "asked to save before it made any progress. The limit must be at least twice as long."
        )
    for name in ("partition", "account", "qos", "gres", "constraint", "mem"):
        if re.search(r"[\s'\"]", getattr(found, name) or ""):
            raise UserError(f"{name} is '{getattr(found, name)}'; it must be one word.")
    for mount in found.mounts:
        if not re.fullmatch(r"[/~][^,\n]*", mount):
            raise UserError(
                f"mounts has '{mount}'; write a whole path, PATH or PATH:INSIDE, without commas."
            )
    return found

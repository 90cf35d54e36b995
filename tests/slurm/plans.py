"""Plans of stages that do nothing but be done."""

from __future__ import annotations

from pathlib import Path

from tuning.plan import Plan, Stage

TRIVIAL = """
import sys
from pathlib import Path
from tuning import config as site
from tuning.plan import read_stage
from tuning.runs.rundir import Identity, claim
stage = read_stage(Path(sys.argv[sys.argv.index("--stage") + 1]))
identity = Identity(run_name=stage.name, kind="x", hash=stage.hash, hashed={}, settings={})
with claim(site.models_dir(), identity) as directory, directory.phase("train"):
    pass
"""


def trivial(folder: Path, count: int) -> Plan:
    """Stages that depend on nothing."""
    stages = tuple(_stage(folder, number) for number in range(count))
    return Plan(experiment=f"many-{count}", stages=stages)


def pairs(folder: Path, runs: int) -> Plan:
    """Half as many first runs as `runs`, and as many that continue one each."""
    stages = []
    for number in range(0, runs, 2):
        first = _stage(folder, number)
        stages += [first, _stage(folder, number + 1, role="pt", parents=(first.name,))]
    return Plan(experiment=f"pairs-{runs}", stages=tuple(stages))


def _stage(folder: Path, number: int, role: str = "sft", parents: tuple[str, ...] = ()) -> Stage:
    script = folder / "stage.py"
    script.write_text(TRIVIAL)
    name, hash_ = f"stage-{number:04d}", f"{number:064d}"
    return Stage(
        name=name, role=role, hash=hash_, phases=("train",), parents=parents,
        script=str(script),
    )  # fmt: skip

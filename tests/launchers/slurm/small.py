"""A plan of a few stages on a SLURM in memory."""

from __future__ import annotations

import random
from pathlib import Path

from tests.launchers.slurm.fake_cluster import FakeCluster, FakeStages
from tuning.launchers.slurm.outcome import Options, Outcome
from tuning.launchers.slurm.resources import Cluster
from tuning.launchers.slurm.submission import Submission
from tuning.plan import Plan, Stage, standing
from tuning.runs.identity import digest


def stage(name: str, *parents: str, role: str = "pt", **values) -> Stage:
    """A stage that trains and nothing else."""
    values = {"script": "run.py", "phases": ("train",), **values}
    return Stage(name=name, role=role, hash=digest(name), parents=parents, **values)


CHAIN = (stage("a"), stage("b", "a"), stage("c", "b"))


class Small:
    """A plan of a few stages on a cluster on which time passes only when it is told to."""

    def __init__(self, home: Path, settings: Cluster, *stages: Stage, **options) -> None:
        rng = random.Random(0)
        self.plan = Plan(experiment="small", stages=stages)
        self.home = home
        self.settings = settings
        self.stages = FakeStages(self.plan, home, rng)
        self.cluster = FakeCluster(self.stages, rng, **({"memory": 50} | options))

    def submit(self, plan: Plan | None = None, **options) -> Outcome:
        """As `tuning submit` does."""
        return Submission(plan or self.plan, self.settings, self.cluster, Options(**options)).run()

    def steps(self, count: int) -> None:
        """Let some moments pass."""
        for _ in range(count):
            self.cluster.step()

    def states(self) -> dict[str, str]:
        """How every stage stands on disk."""
        return {s.name: standing(self.plan, s, self.home).state for s in self.plan.stages}

    def finish(self) -> dict[str, str]:
        """Submit once more, and run everything to its end."""
        self.submit()
        self.cluster.run_down()
        return self.states()

"""Search for the best split: the plan of a grid, carried out in rounds of the runs that are chosen.

    whole grid -> round: the chosen runs of it, and what they start from -> results -> next round

The plan of a round has every run that was chosen so far, so that each round extends the experiment.
It is made from the record (search.json) and the run directories alone: where it is carried out, and
how often it was killed, changes no decision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

from tuning import config as site
from tuning.plan import Plan, Stage, standing
from tuning.runs.errors import UserError
from tuning.search.arms import Arm, Result
from tuning.search.config import SearchConfig
from tuning.search.grid import WAYS, arms_of, results
from tuning.search.record import Record
from tuning.search.rounds import Round, Search, actions, decide


class Rounds:
    """A search in progress; `plan` is that of the rounds so far."""

    def __init__(self, record: Record, folder: Path) -> None:
        self.record = record
        self.folder = folder

    @classmethod
    def begin(cls, whole: Plan, config: SearchConfig) -> Rounds:
        """A new search of a grid, or the recorded one of its name, with these settings; writes
        nothing. UserError for a plan that cannot be searched.
        """
        folder = site.reports_dir() / whole.experiment
        former = Record.read(folder)
        rounds = former.rounds if former else ()
        if rounds and rounds[-1].end:
            rounds = rounds[:-1]  # runs that failed may have ended well since, and caps be raised
        made = cls(Record(plan=whole, config=config, rounds=rounds), folder)
        made._check(former.plan if former else None)
        if not rounds:
            made._add(decide(made.search, (), {}))
        return made

    @classmethod
    def recorded(cls, folder: Path) -> Rounds | None:
        """The search of an experiment; None if it is not one."""
        record = Record.read(folder)
        return cls(record, folder) if record else None

    @cached_property
    def stages(self) -> dict[Arm, list[Stage]]:
        """The stages of each arm, one a seed."""
        return arms_of(self.record.plan)

    @cached_property
    def search(self) -> Search:
        """What is chosen among."""
        most = max(map(len, self.stages.values()))
        return Search(arms=tuple(self.stages), config=self.record.config, runs_of_arm=most)

    @property
    def plan(self) -> Plan:
        """The plan of all rounds so far."""
        done = actions(self.record.rounds)
        chosen = {
            stage.name: _evaluated(stage, self.record.config.first if partly else 1.0)
            for arm, stages in self.stages.items()
            if arm.key in done
            for partly in [done[arm.key] in ("screen", "stop")]
            for stage in stages
        }
        whole = self.record.plan
        about = whole.about | {"search": asdict(self.record.config)}
        return replace(whole, stages=_with_parents(whole, chosen), about=about)

    @property
    def last(self) -> Round:
        """The last round."""
        return self.record.rounds[-1]

    def resume(self) -> Plan:
        """Record the search, and go past rounds of which everything is done already; the plan to
        carry out, that of all rounds where the search is over.
        """
        self.record.write(self.folder)
        while not self.last.end and not pending(self.plan):
            self.advance()
        return self.plan

    def advance(self) -> Plan | None:
        """Decide the next round from what is on disk and record it; its plan, or None if the search
        is over.
        """
        self._add(decide(self.search, self.record.rounds, self.results()))
        self.record.write(self.folder)
        return None if self.last.end else self.plan

    def results(self) -> dict[Arm, Result]:
        """The results of the arms that were started; of those whose runs failed, an empty one."""
        done = actions(self.record.rounds)
        started = {arm: stages for arm, stages in self.stages.items() if arm.key in done}
        return results(self.plan, started, site.home())

    def told(self) -> list[str]:
        """What the last round does, in a line each."""
        number, last = len(self.record.rounds), self.last
        lines = [f"search, round {number}: {s.action} {s.arm} ({s.why})" for s in last.steps]
        if last.end:
            rounds = f"{number - 1} round{'s' if number > 2 else ''}"
            lines.append(f"search: ends after {rounds}, since {last.end}")
            lines += [
                f"search: {b.best} is expected at {b.score:.3f} [{b.low:.3f}, {b.high:.3f}]"
                for b in last.beliefs
            ]
        return lines

    def _add(self, made: Round) -> None:
        self.record = replace(self.record, rounds=(*self.record.rounds, made))

    def _check(self, former: Plan | None) -> None:
        whole = self.record.plan
        if whole.about.get("kind") != "budget":
            raise UserError(
                "--search chooses among splits of a budget; give --sft_ratio and --train_sizes."
            )
        for stage in whole.stages:
            if stage.role in WAYS and not {"train", "infer", "evaluate"} <= {*stage.phases}:
                raise UserError(
                    "a search trains, samples and scores: add --do_training, --do_sft_first, "
                    "--do_inference and --do_evaluation."
                )
        for arm, stages in self.stages.items():
            if len({stage.seed for stage in stages}) < len(stages):
                raise UserError(
                    f"--search would take runs of different settings for seeds of '{arm}'; give "
                    "one value of each setting, and each search an --experiment of its own."
                )
        if len(self.stages) < 2:
            raise UserError("--search needs two splits to choose from; give more --sft_ratio.")
        if former is not None:
            self._check_same(former)

    def _check_same(self, former: Plan) -> None:
        """Raise UserError unless the runs that were started are runs of this grid."""
        name = f"experiment '{self.record.plan.experiment}' is a search that has run"
        was, now = ({a.key: of for a, of in arms_of(p).items()} for p in (former, self.record.plan))
        for key in actions(self.record.rounds):
            if key not in now:
                raise UserError(
                    f"{name} '{key}', which is not among these splits; choose another "
                    "--experiment name."
                )
            if [_identity(stage) for stage in was[key]] != [_identity(stage) for stage in now[key]]:
                raise UserError(
                    f"{name} '{key}' with other settings; choose another --experiment name."
                )


def pending(plan: Plan) -> list[Stage]:
    """The stages that have anything left to do."""
    return [
        stage
        for stage in plan.stages
        if stage.has_work and standing(plan, stage, site.home()).state == "pending"
    ]


def _evaluated(stage: Stage, share: float) -> Stage:
    """A stage that evaluates on a share of its prompts."""
    prompts = int((stage.evaluation or {})["sampling"]["prompts"])
    first = math.ceil(share * prompts)
    return replace(stage, first_prompts=first) if first < prompts else stage


def _with_parents(whole: Plan, chosen: Mapping[str, Stage]) -> tuple[Stage, ...]:
    """The chosen stages and all that they start from, in the order of the grid, and the base
    models. An SFT run that is only started from is neither evaluated nor measured.
    """
    needed, names = {*chosen}, [*chosen]
    while names:
        above = [p for p in whole.stage(names.pop()).parents if p not in needed]
        needed.update(above)
        names += above
    kept = []
    for stage in whole.stages:
        if stage.name in chosen:
            kept.append(chosen[stage.name])
        elif stage.name in needed and stage.role in ("sft", "reference_sft"):
            phases = tuple(phase for phase in stage.phases if phase == "train")
            bare = replace(stage, phases=phases, before_after=None, measure_hash=None)
            kept.append(replace(bare, role="sft", total_data=None))
        elif stage.name in needed or stage.role == "base":
            kept.append(stage)
    return tuple(kept)


def _identity(stage: Stage) -> tuple[str, str | None]:
    return stage.hash, stage.evaluation_hash

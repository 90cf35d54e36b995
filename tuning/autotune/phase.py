"""Tuning as a phase of a training: before the first step of a new run, find how to compute it on
this machine, write that into the run directory, and train so, then and on every resume.

autotune.json in a run directory is the choice, autotune.jsonl the trials that it rests on, and
autotune.svg their picture. A choice comes from the cache (cache.py), from a search here, or is the
run's own settings, where nothing better was found in time.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tuning.autotune import cache, picture
from tuning.autotune.choice import Choice, Found, Source, described, winner_of
from tuning.autotune.config import AutotuneRunConfig
from tuning.autotune.cost import CostModel, Prediction
from tuning.autotune.host import budget_of, device_of, host_limit
from tuning.autotune.observation import Observation, latest
from tuning.autotune.process import Limits, run_trial
from tuning.autotune.rows import sample_of, write
from tuning.autotune.score import Scorer, fastest_of
from tuning.autotune.search import Budget, OutOfTime, Result, search
from tuning.autotune.space import Candidate
from tuning.autotune.strategies import strategy
from tuning.autotune.subject import Subject, tuned
from tuning.autotune.trial import Request
from tuning.autotune.workload import Device, Workload
from tuning.flags import plain, restore
from tuning.runs import atomic, interrupt
from tuning.runs.errors import cut
from tuning.runs.lock import process_start
from tuning.runs.log import logger
from tuning.runs.rundir import RunDirectory

CHOICE, HISTORY, PICTURE = "autotune.json", "autotune.jsonl", "autotune.svg"
SHARE_OF_TRIAL = 1 / 8
"""Of the time budget, after which a trial is content with few steps."""
MOST_OF_TRIAL = 1 / 3
"""Of the time budget, after which a trial counts as hung."""
LEAST_OF_TRIAL = 60.0
"""Seconds that a trial has in any case: it imports and loads a model."""
TELL_SECONDS = 2.0
Tell = Callable[[int, int, str], None]
"""Reports trial i of at most n, and what it tries."""


def chosen_in(directory: RunDirectory) -> Choice | None:
    """The choice of a run; None if it was never tuned."""
    found = atomic.read_object(directory.path / CHOICE)
    return None if found is None else restore(Choice, found)


def record(directory: RunDirectory, found: Found) -> None:
    """Write a choice into a run directory, autotune.json last."""
    lines = "".join(f"{_line(o)}\n" for o in found.observations)
    atomic.write_text(directory.path / HISTORY, lines)
    drawn = picture.drawn(found.observations, found.scorer, winner_of(found.choice))
    if drawn:
        atomic.write_text(directory.path / PICTURE, drawn)
    atomic.write_json(directory.path / CHOICE, asdict(found.choice))


def reject(directory: RunDirectory, why: str) -> None:
    """Memory ran out in the training with the choice of a run: drop it, there and in the cache, and
    count its candidate as out of memory.
    """
    choice = chosen_in(directory)
    if choice is not None and choice.candidate is not None:
        candidate = Candidate(**choice.candidate)
        cache.disown(
            choice.key, Observation(candidate=candidate, outcome="oom", note=cut(why, 300))
        )
    (directory.path / CHOICE).unlink(missing_ok=True)


def choose(config: AutotuneRunConfig, tell: Tell) -> Found:
    """Find how to compute a run on this machine.

    Raises Interrupted when asked to stop; what was observed is kept and the next call goes on.
    """
    scratch = _scratch()
    try:
        device = device_of(config.search, config.processes, scratch)
        sample = sample_of(config, cache.root() / "lengths")
        subject = Subject(config, sample, device)
        return _Chooser(subject, scratch, tell).choose()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def estimated(subject: Subject) -> dict[Candidate, Prediction]:
    """What the cost model expects of each candidate, without a trial."""
    return CostModel(subject.workload, subject.device, subject.space).predictions()


def estimate(config: AutotuneRunConfig) -> tuple[dict[Candidate, Prediction], Scorer]:
    """The same for a run on this machine; nothing is tried."""
    scratch = _scratch()
    try:
        device = device_of(config.search, config.processes, scratch)
        sample = sample_of(config, cache.root() / "lengths")
        subject = Subject(config, sample, device)
        return estimated(subject), Scorer(capacity=subject.device.capacity)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _TooLong(Exception):
    """Another process has searched this key for longer than this one would."""


class _Chooser:
    """One search for one run."""

    def __init__(self, subject: Subject, scratch: Path, tell: Tell) -> None:
        self.subject, self.scratch, self.tell = subject, scratch, tell
        self.config, self.search = subject.config, subject.config.search
        self.entry = cache.Entry(cache.about(subject))
        s = self.search
        self.scorer = Scorer(
            capacity=subject.device.capacity, alpha=s.score_alpha, beta=s.score_beta
        )
        self.budget_seconds = budget_of(s)

    def choose(self) -> Found:
        """From the cache, or by a search that no other process makes at the same time."""
        if (hit := self._hit()) is not None:
            return hit
        until = time.monotonic() + self.budget_seconds
        try:
            with self.entry.lock.holding(check=lambda: _check(until)):
                return self._hit() or self._searched()
        except _TooLong:
            return self._default("another process still searches; not waiting any longer")

    def _hit(self) -> Found | None:
        """The cached choice, unless its search ran out of a time of which there is more now."""
        kept = self.entry.choice()
        if kept is None or kept.candidate not in self.subject.space.candidates:
            return None
        if kept.ended == "out of time" and self.budget_seconds > 2 * kept.seconds:
            return None
        seen = latest(self.entry.history.read())
        if (best := self.scorer.best(seen.values())) is not None:  # by the weights asked for now
            score = self.scorer.score(best, fastest_of(seen.values()))
            kept = replace(kept, candidate=best.candidate, score=score)
        return self._found("cache", kept)

    def _searched(self) -> Found:
        self.entry.begin()
        result = self._search()
        if result.winner is None:
            found = self._default(result.why)
            self.entry.forget()
            return found
        before = self.entry.choice()
        kept = cache.Kept(
            candidate=result.winner,
            trials=len(result.observations),
            seconds=round(result.seconds + (before.seconds if before else 0.0), 2),
            ended=result.ended,
            score=self._score(result),
            prediction_error=result.prediction_error,
            why=result.why,
        )
        self.entry.keep(kept)
        return self._found("search", kept)

    def _search(self) -> Result:
        subject, s = self.subject, self.search
        model = CostModel(subject.workload, subject.device, subject.space)
        earlier = []
        for about, seen in self.entry.neighbours()[:1]:  # hints: the winner is one tried here
            neighbour = _cost_of(about, subject)
            earlier = _scaled(seen, estimated(subject), neighbour, subject)
            neighbour.observe_all(seen)
            model.warm(neighbour)
        budget = Budget(seconds=self.budget_seconds, max_iterations=s.max_iterations)
        files = write(self.config, subject.sample, self.scratch / "rows")
        trials = _Trials(self, budget, files)
        trials.try_own(subject.own)
        return search(
            subject.space,
            strategy(s.strategy, model, self.scorer, target_mfu=s.mfu_target, earlier=earlier),
            trials.run,
            scorer=self.scorer,
            budget=budget,
            history=self.entry.history,
            progress=trials.show,
        )

    def _score(self, result: Result) -> float | None:
        seen = latest(result.observations)
        best = seen.get(result.winner) if result.winner else None
        return self.scorer.score(best, fastest_of(seen.values())) if best else None

    def _found(self, source: Source, kept: cache.Kept) -> Found:
        run = tuned(self.config, kept.candidate)
        choice = Choice(
            source=source,
            candidate=kept.candidate.to_json(),
            compute=plain(run.compute),
            processes=self.config.processes,
            key=self.entry.key,
            trials=kept.trials,
            seconds=kept.seconds,
            score=kept.score,
            prediction_error=kept.prediction_error,
            why=kept.why,
        )
        return self._with_trials(choice)

    def _default(self, why: str) -> Found:
        choice = Choice(
            source="default",
            compute=plain(self.subject.run.compute),
            processes=self.config.processes,
            key=self.entry.key,
            trials=len(self.entry.history.read()),
            why=why,
        )
        return self._with_trials(choice)

    def _with_trials(self, choice: Choice) -> Found:
        return Found(
            choice=choice,
            observations=tuple(self.entry.history.read()),
            scorer=self.scorer,
            expected=estimated(self.subject),
        )


class _Trials:
    """Runs the trials of a search, and shows them."""

    def __init__(self, chooser: _Chooser, budget: Budget, files: dict[str, str]) -> None:
        self.chooser, self.budget, self.files = chooser, budget, files
        self.number = len(chooser.entry.history.read())
        self._told = 0.0

    def try_own(self, own: Candidate | None) -> None:
        """Measure the run's own settings before all else, so that what is chosen is no slower; the
        search is told of it as of a trial of an earlier attempt.
        """
        history = self.chooser.entry.history
        if own is None or own in latest(history.read()):
            return
        began = time.monotonic()
        try:
            found = replace(self.run(own).checked(), seconds=time.monotonic() - began)
        except OutOfTime:
            return
        history.append(found)
        self.show(found, self.number, self.budget.max_iterations)

    def run(self, candidate: Candidate) -> Observation:
        """Measure a candidate; OutOfTime if the search ends before the trial counts as hung."""
        config = self.chooser.config
        self.number += 1
        self._told = 0.0
        self._tick(candidate)
        total = self.budget.seconds
        request = Request(
            config=config,
            candidate=candidate.to_json(),
            files=self.files,
            rows=self.chooser.subject.rows,
            steps=self.chooser.search.profile_steps,
            seconds=total * SHARE_OF_TRIAL,
            parent=os.getpid(),
        )
        most, left = max(total * MOST_OF_TRIAL, LEAST_OF_TRIAL), self.budget.left()
        limits = Limits(
            seconds=min(left, most),
            host_bytes=host_limit(config.search),
        )
        folder = self.chooser.scratch / "trial"
        found = run_trial(request, candidate, folder, limits, lambda: self._tick(candidate))
        if found.outcome == "hang" and left < most:
            raise OutOfTime
        return self._with_speed(found)

    def _with_speed(self, found: Observation) -> Observation:
        step, subject = found.step, self.chooser.subject
        if not found.ok or not step:
            return found
        peak, mfu = subject.device.peak_flops, None
        if peak:
            mfu = subject.flops_per_step / step / (peak * subject.device.count)
        return replace(found, tokens_per_second=subject.tokens_per_step / step, mfu=mfu)

    def _tick(self, candidate: Candidate) -> None:
        if time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            self.chooser.tell(self.number, self.budget.max_iterations, str(candidate))

    def show(self, observation: Observation, number: int, most: int) -> None:
        """A line for each trial."""
        logger.info(f"tune {number}/{most}: {described(observation)}")


def _check(until: float) -> None:
    """While another process searches: stop on request, and after a time."""
    interrupt.check()
    if time.monotonic() > until:
        raise _TooLong


def _line(observation: Observation) -> str:
    import json

    return json.dumps(observation.to_json())


def _cost_of(about: dict[str, Any], subject: Subject) -> CostModel:
    """The cost model of a neighbour, before it has observed anything."""
    longest, mean = (cache.BUCKET**n for n in about["lengths"])
    lengths = {"longest": max(1, round(longest)), "mean": mean, "lengths": ()}
    workload = Workload(**about["shape"] | lengths)
    name, capacity = about["device"]
    count = subject.device.count
    return CostModel(workload, Device.named(name, capacity, count=count), subject.space)


def _scaled(
    seen: Sequence[Observation],
    here: Mapping[Candidate, Prediction],
    there: CostModel,
    subject: Subject,
) -> list[Observation]:
    """What ran for a neighbour as it would be here: scaled by what the counts say of both. `there`
    has observed nothing yet.
    """
    found = []
    for o in seen:
        if not o.ok or o.candidate not in here or not o.step:
            continue
        ours, theirs = here[o.candidate], there.predict(o.candidate)
        longer = ours.step_seconds / theirs.step_seconds
        found.append(
            replace(
                o,
                step_seconds=tuple(s * longer for s in o.step_seconds),
                peak_bytes=round((o.peak_bytes or 0) * ours.peak_bytes / theirs.peak_bytes),
                tokens_per_second=subject.tokens_per_step / (o.step * longer),
            )
        )
    return found


def _scratch() -> Path:
    """A folder of this process; those of processes of this host that are gone are removed."""
    parent = cache.root() / "scratch"
    host = socket.gethostname()
    for left in parent.glob(f"{host}-*"):
        pid = left.name.rpartition("-")[2]
        if pid.isdigit() and not process_start(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / f"{host}-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""Answers side by side: the same few test prompts, and what each model said, as its evaluation has
it; nothing is sampled for the page.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning.plan import Plan, standing
from tuning.report.html_tables import Name, name_of
from tuning.report.labels import Labels
from tuning.report.palette import Palette
from tuning.report.rows import Row
from tuning.runs import typed
from tuning.runs.errors import UserError
from tuning.runs.json_text import NotJSON, parse_object

PROMPTS = 4
MODELS = 24
"""Most models to show."""
SHOWN = 480
"""Characters of an answer that are shown at once; the rest unfolds."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The first answer of a model to a prompt."""

    name: Name
    text: str
    beginning: str
    """What is shown of a long one before it is unfolded; "" for a short one."""
    right: bool | None
    """Whether it is graded right; None where only the share is known."""
    share: str
    """How many of the model's answers to the prompt are right."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A test prompt with the answers of all models."""

    number: int
    """Its place in the test pool, from 1."""
    text: str
    beginning: str
    answers: list[Answer]


@dataclass(frozen=True, kw_only=True)
class Generations:
    """What the section shows."""

    prompts: list[Prompt]
    of: int
    """Test prompts that every model answered."""
    note: str
    """Which models are left out; "" if none is."""


@dataclass(frozen=True, kw_only=True)
class _Model:
    row: Row
    folder: Path
    scores: dict[str, Any]


def side_by_side(
    plan: Plan, home: Path, rows: Sequence[Row], labels: Labels, palette: Palette
) -> Generations | None:
    """A few prompts with an answer of every model, chosen by a fixed seed; None without answers."""
    evaluated = _models(plan, home, rows)
    shown = _chosen(evaluated)
    if not shown:
        return None
    common = min(int(model.scores["prompts"]) for model in shown)
    places = sorted(random.Random(0).sample(range(common), min(PROMPTS, common)))
    lines = [_lines(model.folder, places) for model in shown]
    asked = next((found for found in lines if found), {})
    same = [(m, found) for m, found in zip(shown, lines, strict=True) if _asks(found, asked)]
    prompts = []
    for place in places if asked else ():
        answers = [_answer(m, found[place], place, labels, palette) for m, found in same]
        text = str(asked[place]["prompt"])
        prompts.append(
            Prompt(number=place + 1, text=text, beginning=_beginning(text), answers=answers)
        )
    left = len(evaluated) - len(same)
    note = f"{left} more models are not shown: other budgets, seeds or prompts." if left else ""
    return Generations(prompts=prompts, of=common, note=note) if prompts else None


def _models(plan: Plan, home: Path, rows: Sequence[Row]) -> list[_Model]:
    """The models whose answers are there and graded."""
    found = []
    for row in rows:
        if row.scores is None:
            continue
        directory = standing(plan, plan.stage(row.stage_name), home).evaluation
        if directory is None or not (directory.path / "responses.jsonl").exists():
            continue
        scores = typed.scores(directory.path / "scores.json")
        if scores is not None:
            found.append(_Model(row=row, folder=directory.path, scores=scores))
    return found


def _chosen(models: Sequence[_Model]) -> list[_Model]:
    """Those to show: of several budgets the largest, of several seeds the first."""
    budgets = [m.row.total_budget for m in models if m.row.total_budget is not None]
    largest = max(budgets, default=None)
    of_budget = [m for m in models if m.row.total_budget in (None, largest)]
    seeds = [m.row.seed for m in of_budget if m.row.seed is not None and m.row.role != "base"]
    first = min(seeds, default=None)
    shown = [m for m in of_budget if m.row.role == "base" or m.row.seed in (None, first)]
    return shown[:MODELS]


def _lines(folder: Path, places: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The lines of responses.jsonl at some places; {} where one is missing or damaged."""
    wanted, found = set(places), {}
    try:
        with (folder / "responses.jsonl").open(encoding="utf-8") as file:
            for number, line in enumerate(file):
                if number in wanted:
                    found[number] = parse_object(line, str(folder))
    except (OSError, UnicodeDecodeError, NotJSON, UserError):
        return {}
    whole = all(_whole(line) for line in found.values())
    return found if found.keys() == wanted and whole else {}


def _whole(line: dict[str, Any]) -> bool:
    answers = line.get("responses")
    return isinstance(answers, list) and bool(answers) and "prompt" in line


def _asks(found: dict[int, dict[str, Any]], asked: dict[int, dict[str, Any]]) -> bool:
    """Whether a model was asked the same at all places."""
    return bool(found) and all(found[n]["prompt"] == asked[n]["prompt"] for n in asked)


def _answer(
    model: _Model, line: dict[str, Any], place: int, labels: Labels, palette: Palette
) -> Answer:
    text, samples = str(line["responses"][0]), int(model.scores["samples"])
    marks, right = model.scores.get("marks"), int(model.scores["correct"][place])
    if isinstance(marks, list) and place < len(marks) and marks[place]:
        first: bool | None = str(marks[place])[0] == "1"
    else:
        first = {0: False, samples: True}.get(right)
    return Answer(
        name=name_of(model.row, labels, palette),
        text=text,
        beginning=_beginning(text),
        right=first,
        share=f"{right} of {samples} right",
    )


def _beginning(text: str) -> str:
    """The beginning of a text that is too long to be shown whole; "" for one that is not."""
    return f"{text[:SHOWN].rstrip()} …" if len(text) > SHOWN + 80 else ""

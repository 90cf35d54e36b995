"""What trainings changed and what models answered, in the report of a made-up experiment."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from fake_experiment import Fake, fake, fake_budget

from tuning.plan import Stage, standing
from tuning.report import generations
from tuning.report.build import write_report
from tuning.report.labels import Labels
from tuning.report.palette import Palette
from tuning.report.read import gather
from tuning.runs import atomic
from tuning.runs.rundir import RunDirectory

pytestmark = pytest.mark.unit


def html(home: Path) -> str:
    return (home / "outputs/reports/trial/report.html").read_text(encoding="utf-8")


def table(home: Path) -> list[dict[str, str]]:
    with (home / "outputs/reports/trial/results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def interval(estimate: float, **more: Any) -> dict[str, Any]:
    return {"estimate": estimate, "low": estimate - 0.05, "high": estimate + 0.05, **more}


def side(model: str, score: float, perplexity: float, reward: float | None) -> dict[str, Any]:
    more = {"margin": interval(0.2), "pairs": 64, "chosen_longer": 0.61, "longer_preferred": 0.7}
    return {
        "model": model,
        "score": interval(score, prompts=200, samples=8),
        "perplexity": interval(perplexity),
        "reward": None if reward is None else interval(reward, **more),
    }


def measure(made: Fake, stage: Stage, start: str, reward: float | None) -> None:
    """before_after.json of a stage that is trained."""
    run = standing(made.plan, stage, made.home).run
    assert run is not None
    found = {
        "before": side(start, 0.25, 2.0, None if reward is None else 0.5),
        "after": side(run.name, 0.5, 1.5, reward),
        "change": {"score": interval(0.25), "perplexity": interval(0.75)},
    }
    atomic.write_json(run.path / "before_after.json", found)
    status = run.status
    status["phases"]["measure"] = {"state": "done", "seconds": 1.0}
    atomic.write_json(run.path / "status.json", status)


def answer(made: Fake, text: str = "It is 4.\n#### 4", **changes: Any) -> None:
    """responses.jsonl of every evaluation: `text` and the name of the model."""
    for stage in made.plan.stages:
        evaluation = standing(made.plan, stage, made.home).evaluation
        if evaluation is None or not evaluation.done("evaluate"):
            continue
        lines = [
            {"index": n, "prompt": f"Prompt {n} <b>", "answer": "4", "responses": [text] * 8}
            | changes
            for n in range(made.prompts)
        ]
        text_of = "".join(json.dumps(line) + "\n" for line in lines)
        (evaluation.path / "responses.jsonl").write_text(text_of)


def shown_of(made: Fake) -> generations.Generations:
    """What the section shows."""
    rows = gather(made.plan, made.home)
    found = generations.side_by_side(made.plan, made.home, rows, Labels.of(rows), Palette(rows))
    assert found is not None
    return found


@pytest.fixture
def made(home: Path) -> Fake:
    made = fake(home, thresholds=(2.0,))
    made.write()
    return made


def test_what_was_measured_is_in_the_table_and_in_the_csv(made: Fake) -> None:
    sft, fork = (next(s for s in made.plan.stages if s.role == r) for r in ("sft", "fork"))
    measure(made, sft, "tiny", None)
    spot = next(s for s in made.plan.stages if s.role == "sweetspot")
    measure(made, fork, spot.artifact, 0.8)
    write_report(made.plan, made.home)
    page = html(made.home)
    section = page[page.index("Before and after each training") :]
    assert "from base model" in section and "from SFT to ppl 2.0" in section
    assert "0.800" in section and "×0.750" in section and "70%" in section
    assert "64 held-out pairs, in 61% of which" in section
    rows = {row["stage"]: row for row in table(made.home)}
    assert rows["fork"]["reward_accuracy_after"] == "0.8"
    assert rows["fork"]["pass_at_1_change_low"] == "0.2"
    assert rows["sft"]["perplexity_before"] == "2.0"
    assert rows["sft"]["reward_accuracy_after"] == rows["base"]["perplexity_after"] == ""
    assert rows["fork"]["chosen_longer"] == "0.61"


def test_of_several_seeds_each_has_its_own_line(home: Path) -> None:
    """One seed's changes are not shown as those of all; ways.csv, with a row a way, has none."""
    made = fake_budget(home, seeds=(1, 2), sft_ratios=("0.5",))
    made.write()
    tuned = [stage for stage in made.plan.stages if stage.role == "pt"]
    for stage, reward in zip(tuned, (0.81, 0.62), strict=True):
        measure(made, stage, stage.parent or "", reward)
    write_report(made.plan, home)
    page = html(home)
    section = page[page.index("Before and after each training") :]
    for text in ("0.810", "0.620", "seed 1", "seed 2"):
        assert text in section.partition("</table>")[0], text
    assert {row["reward_accuracy_after"] for row in table(home)} == {"", "0.81", "0.62"}
    ways = (home / "outputs/reports/trial/ways.csv").read_text(encoding="utf-8")
    assert "0.81" not in ways


def test_without_measuring_there_is_neither_section_nor_column(made: Fake) -> None:
    write_report(made.plan, made.home)
    assert "Before and after" not in html(made.home)
    assert "Answers side by side" not in html(made.home)
    assert not [name for name in table(made.home)[0] if "before" in name or "longer" in name]


def test_a_damaged_file_is_no_measurement(made: Fake) -> None:
    sft = next(s for s in made.plan.stages if s.role == "sft")
    measure(made, sft, "tiny", None)
    (made.home / "models" / sft.name / "before_after.json").write_text('{"before": 3')
    write_report(made.plan, made.home)
    assert "Before and after" not in html(made.home)


def test_answers_stand_side_by_side_escaped_and_closed(made: Fake) -> None:
    answer(made, "<script>alert(1)</script>")
    write_report(made.plan, made.home)
    page = html(made.home)
    section = page[page.index("Answers side by side") :]
    assert "<script>alert" not in page and "Prompt 1 <b>" not in page
    assert section.count("<details") - section.count('details class="whole"') >= 4
    assert "<details open" not in section
    models = [s for s in made.plan.stages if s.evaluation_hash]
    assert section.count("&lt;script&gt;alert(1)") == 4 * len(models)
    assert "SFT to ppl 2.0" in section and "DPO from ppl 2.0" in section


def test_the_same_prompts_are_chosen_each_time(made: Fake) -> None:
    answer(made)
    chosen = [[prompt.number for prompt in shown_of(made).prompts] for _ in range(2)]
    assert chosen[0] == chosen[1] and len(set(chosen[0])) == generations.PROMPTS


def test_a_long_answer_is_cut_and_can_be_read_whole(made: Fake) -> None:
    answer(made, "word " * 400 + "the end")
    write_report(made.plan, made.home)
    page = html(made.home)
    assert "whole answer, 2,007 characters" in page
    first = page[page.index("Answers side by side") :].partition('details class="whole"')[0]
    assert "the end" not in first and first.count("word ") < 150
    assert page.count("the end") >= 4


@pytest.mark.parametrize(
    ("marks", "correct", "shown"),
    [("10000000", 1, True), ("01111111", 7, False), (None, 8, True), (None, 0, False),
     (None, 3, None)],
)  # fmt: skip
def test_a_mark_is_that_of_the_answer_shown(
    made: Fake, marks: str | None, correct: int, shown: bool | None
) -> None:
    """Evaluations from before there were marks have it where all or none are right."""
    answer(made)
    base = next(s for s in made.plan.stages if s.role == "base")
    evaluation = standing(made.plan, base, made.home).evaluation
    assert evaluation is not None
    scores = atomic.read_json(evaluation.path / "scores.json")
    scores["correct"] = [correct] * made.prompts
    scores |= {"marks": [marks] * made.prompts} if marks else {}
    atomic.write_json(evaluation.path / "scores.json", scores)
    answers = [prompt.answers[0] for prompt in shown_of(made).prompts]
    assert {answer.right for answer in answers} == {shown}
    assert {answer.share for answer in answers} == {f"{correct} of 8 right"}


def test_of_a_grid_the_largest_budget_and_the_first_seed_are_shown(home: Path) -> None:
    made = fake_budget(home, train_sizes=(100, 1000), seeds=(1, 2))
    made.write()
    answer(made)
    shown = shown_of(made)
    names = [answer.name.label for answer in shown.prompts[0].answers]
    assert any("seed 1" in name for name in names) and not any("seed 2" in name for name in names)
    answered = len(list(home.glob("outputs/math/*/responses.jsonl")))
    assert shown.note.startswith(f"{answered - len(names)} more models are not shown")


def test_models_that_were_asked_other_prompts_are_left_out(made: Fake) -> None:
    answer(made)
    fork = next(s for s in made.plan.stages if s.role == "fork")
    evaluation = standing(made.plan, fork, made.home).evaluation
    assert isinstance(evaluation, RunDirectory)
    path = evaluation.path / "responses.jsonl"
    path.write_text(path.read_text().replace("Prompt", "Question"))
    shown = shown_of(made)
    assert "DPO from ppl 2.0" not in [answer.name.label for answer in shown.prompts[0].answers]
    assert shown.note.startswith("1 more models are not shown")

"""The report of experiments that are whole, cut short, failed, or hardly begun."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_experiment import REALISTIC, Fake, fake

from tuning.plan import Stage
from tuning.report.answer import answer
from tuning.report.build import write_report
from tuning.report.comparisons import compare
from tuning.report.labels import Labels
from tuning.report.palette import Palette
from tuning.report.read import gather
from tuning.report.svg import spread
from tuning.report.text_table import COLUMNS
from tuning.runs import atomic
from tuning.runs.identity import FORMAT
from tuning.runs.rundir import RunDirectory

pytestmark = pytest.mark.unit


def table(home: Path) -> list[dict[str, str]]:
    """results.csv of the experiment `trial`."""
    with (home / "outputs/reports/trial/results.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def html(home: Path) -> str:
    """report.html of the experiment `trial`."""
    return (home / "outputs/reports/trial/report.html").read_text(encoding="utf-8")


def forks(made: Fake) -> list[Stage]:
    """The forks of a plan."""
    return [stage for stage in made.plan.stages if stage.role == "fork"]


def test_csv_has_every_stage_in_the_order_of_the_plan(home: Path) -> None:
    made = fake(home)
    made.write()
    write_report(made.plan, home)
    rows = table(home)
    assert tuple(rows[0]) == (*COLUMNS, "format")
    assert COLUMNS[:3] == ("run_name", "stage", "pft_method") and COLUMNS[-2:] == ("seed", "note")
    roles = [stage.role for stage in made.plan.stages if stage.role != "pretrain"]
    assert [row["stage"] for row in rows] == roles
    assert [row["config_hash"] for row in rows] == [s.hash for s in made.plan.stages[1:]]
    assert not any(row["note"] for row in rows)


def test_csv_counts_what_was_really_used(home: Path) -> None:
    made = fake(home)
    made.write()
    write_report(made.plan, home)
    rows = {row["run_name"]: row for row in table(home)}
    fork = next(row for row in rows.values() if row["stage"] == "fork")
    spot, sft = rows[fork["parent"]], rows[rows[fork["parent"]]["parent"]]
    assert (spot["stage"], spot["threshold"], fork["threshold"]) == ("sweetspot", "2.0", "2.0")
    assert fork["perplexity"] == spot["perplexity"]
    assert fork["sft_data_used"] == spot["sft_data_used"] == "1120"
    assert (fork["pft_data"], fork["total_data"]) == ("1880", "3000")
    assert int(sft["sft_data_used"]) == int(sft["total_data"]) < 2000
    step = 1120 // 32
    assert int(spot["train_tokens"]) == step * 32 * 71
    assert int(fork["train_tokens"]) == 1880 * 155
    base = rows["tiny"]
    assert (base["sft_data_used"], base["perplexity"], base["parent"]) == ("0", "8.9", "")
    assert base["train_tokens"] == "24500000"


def test_a_chain_costs_its_sft_part_and_its_own(home: Path) -> None:
    made = fake(home)
    made.write()
    rows = gather(made.plan, home)
    fork = next(row for row in rows if row.role == "fork")
    spot = next(row for row in rows if row.role == "sweetspot")
    assert fork.sft_cost == spot.cost and fork.pft_cost == fork.cost


def test_two_reports_are_the_same_bytes(home: Path) -> None:
    made = fake(home, methods=("dpo", "kto"))
    made.write()
    first = write_report(made.plan, home), html(home)
    states = {stage.name: ("done", "") for stage in made.plan.stages}
    assert (write_report(made.plan, home, states), html(home)) == first


def test_what_was_used_on_a_cluster_is_shown_where_it_is_known(home: Path) -> None:
    made = fake(home)
    made.write()
    write_report(made.plan, home)
    assert "on the cluster" not in html(home)
    used = {
        "starts": 4, "seconds": 7200, "core_seconds": 28800, "cpu_seconds": 14400.0,
        "ended_core_seconds": 28800, "gpu_seconds": 14400, "memory": 3 << 30,
        "memory_asked": 8 << 30,
    }  # fmt: skip
    path = home / "outputs/reports/trial/usage.json"
    atomic.write_json(path, {"format": FORMAT, "kinds": {"sft": used}})
    write_report(made.plan, home)
    section = html(home).partition("What it used on the cluster")[2].partition("</section>")[0]
    cells = re.findall("<td>(.*?)</td>", section)
    assert cells[:7] == ["sft", "4", "2.00", "4.00", "8.00", "50%", "3.00 GB of 8.00 GB"]


def test_only_seconds_depend_on_the_machine(home: Path) -> None:
    texts = []
    for seconds in (1.0, 3.7):
        made = fake(home)
        made.seconds = seconds
        made.write()
        write_report(made.plan, home)
        texts.append([row | {"train_seconds": "", "total_seconds": ""} for row in table(home)])
        for folder in ("models", "outputs"):
            shutil.rmtree(home / folder)
    assert texts[0] == texts[1]


def test_sweetspots_that_are_missing_say_why(home: Path) -> None:
    made = fake(home, thresholds=(20.0, 2.0, 1.1))
    made.write()
    told = write_report(made.plan, home)
    notes = {(row["stage"], row["threshold"]): row["note"] for row in table(home)}
    for role in ("sweetspot", "fork"):
        assert notes[role, "20.0"] == "met by the base, 8.9"
        assert notes[role, "1.1"].startswith("perplexity never reached 1.1 (best 1.2")
        assert notes[role, "2.0"] == ""
    assert "perplexity never reached 1.1" in told and "perplexity never reached 1.1" in html(home)
    names = [row["run_name"] for row in table(home) if row["stage"] == "fork"]
    assert "remaining" in names[0] and "remaining" not in names[1]


def test_states_of_the_launcher_give_the_reasons(home: Path) -> None:
    made = fake(home)
    made.write("pretrain", "base", "sft", "sweetspot")
    first, second, third = forks(made)
    states = {first.name: ("failed", "out of memory"), second.name: ("blocked", "x failed")}
    states[third.name] = ("pending", "")
    write_report(made.plan, home, states)
    notes = [row["note"] for row in table(home) if row["stage"] == "fork"]
    assert notes == ["failed: out of memory", "blocked: x failed", "not run yet"]


def test_run_directories_alone_give_the_reasons(home: Path) -> None:
    made = fake(home)
    made.write("pretrain", "base", "sft", "sweetspot")
    for stage in forks(made)[:2]:
        made.write_stage(stage)
    name = next(row.run_name for row in gather(made.plan, home) if row.role == "fork")
    RunDirectory(home / "models" / name).write_status(
        "failed", "disk full", {"train": {"state": "pending"}}
    )
    rows = [row for row in gather(made.plan, home) if row.role == "fork"]
    assert [row.note for row in rows] == ["failed: disk full", "", "not run yet"]


def test_what_is_done_beats_what_a_launcher_saw(home: Path) -> None:
    made = fake(home)
    made.write()
    states = {stage.name: ("failed", "late") for stage in made.plan.stages}
    assert all(row.state == "done" for row in gather(made.plan, home, states))


def test_forks_are_compared_with_their_parent_and_the_whole_budget(home: Path) -> None:
    scores = REALISTIC | {"sweetspot-2.0": 0.30, "fork-2.0-dpo": 0.60, "fork-1.4-dpo": 0.30}
    made = fake(home, scores)
    made.write()
    rows = gather(made.plan, home)
    found = compare(rows)
    parents = found.about("parent")
    assert [c.theirs.run_name for c in parents] == [c.ours.parent for c in parents]
    assert [c.verdict for c in (parents[0], parents[2])] == ["better", "worse"]
    assert {c.theirs.role for c in found.about("whole_budget")} == {"reference_sft"}
    assert [c.ours.role for c in found.about("base")] == ["sft", "reference_sft", "reference_pt"]
    for c in found.questions:
        assert c.ours.scores and c.theirs.scores
        expected = c.ours.scores.first[0] - c.theirs.scores.first[0]
        assert c.difference.estimate == pytest.approx(expected, abs=1e-5)


def test_equal_models_are_not_called_different(home: Path) -> None:
    made = fake(home, REALISTIC | {"sweetspot-2.0": 0.4, "fork-2.0-dpo": 0.4})
    made.write()
    parents = compare(gather(made.plan, home)).about("parent")
    assert parents[0].verdict == "no difference that these prompts can show"


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"reference_sft": 0.75}, "Spend all 3,000 examples on SFT"),
        ({"fork-1.4-dpo": 0.85}, "Spend the budget on SFT to perplexity 1.4, then DPO"),
        ({"reference_pt": 0.9}, "Spend all 3,000 examples on DPO"),
        ({"fork-1.4-dpo": 0.66, "reference_sft": 0.66}, "No clear winner: "),
    ],
)
def test_the_headline_follows_the_numbers(
    home: Path, changes: dict[str, float], title: str
) -> None:
    made = fake(home, REALISTIC | changes)
    made.write()
    told = write_report(made.plan, home)
    rows = gather(made.plan, home)
    assert answer(rows, compare(rows), Labels.of(rows)).title.startswith(title)
    assert f"<h1>{title}" in html(home) and title in " ".join(told.split())


def test_one_prompt_settles_nothing(home: Path) -> None:
    made = fake(home, thresholds=(2.0,))
    made.prompts, made.samples = 1, 1
    made.write()
    write_report(made.plan, home)
    found = compare(gather(made.plan, home)).questions
    assert {c.verdict for c in found} == {"too few prompts to tell"}
    assert "Too few test prompts" in html(home)


@pytest.mark.parametrize(
    ("changes", "roles"),
    [
        ({}, ("nothing",)),
        ({}, ("pretrain", "sft")),
        ({"do_dpo": False}, ()),
        ({"do_sft": False, "references": False}, ()),
        ({"do_inference": False, "do_evaluation": False}, ()),
        (
            {"methods": ("dpo", "kto", "grpo"), "thresholds": (2.5, 2.2, 2.0, 1.8, 1.6, 1.4)},
            (),
        ),
        ({"thresholds": (1.01,)}, ()),
        ({"thresholds": (), "patience": ("2:0.02",)}, ()),
        ({"sft_data": 3000, "thresholds": (1.3,)}, ()),
    ],
)
def test_parts_may_be_missing(
    home: Path, changes: dict[str, object], roles: tuple[str, ...]
) -> None:
    scores = None if changes.get("do_evaluation", True) else {}
    made = fake(home, scores, **changes)
    made.write(*roles)
    told = write_report(made.plan, home)
    assert len(table(home)) == len(made.plan.stages) - 1
    assert told.endswith("report.html") and max(map(len, told.splitlines()[:-1])) <= 120
    assert "</html>" in html(home) and not re.search(r"\bnan\b|None", html(home))


class _Resources(HTMLParser):
    """What a page would load, and the ids that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "data", "xlink:href") and not (value or "").startswith("#"):
                self.loaded.append(f"{tag} {name}={value}")


def test_the_page_needs_no_other_file(home: Path) -> None:
    made = fake(home, methods=("dpo", "kto"))
    made.write()
    write_report(made.plan, home)
    page = html(home)
    seen = _Resources()
    seen.feed(page)
    assert seen.loaded == [] and not seen.tags & {"script", "link", "iframe", "img"}
    assert "http://" not in page and "https://" not in page and "@import" not in page
    assert len(seen.ids) == len(set(seen.ids))
    for name in re.findall(r'(?:href="|url\()#([\w-]+)', page):
        assert name in seen.ids
    assert not re.search(r"#[0-9a-f]{6}", page.partition("</style>")[2])


def test_what_others_wrote_is_escaped(home: Path) -> None:
    made = fake(home, experiment="trial")
    evil = "<script>alert('x')</script> & $more$"
    made.plan.about["models"] = [evil]
    made.settings = {"note": evil}
    made.write("pretrain", "base", "sft", "sweetspot")
    states = {forks(made)[0].name: ("failed", evil)}
    write_report(made.plan, home, states)
    assert "<script" not in html(home) and html(home).count("&lt;script&gt;") >= 3
    assert table(home)[5]["note"] == f"failed: {evil}"


def test_importing_and_writing_needs_no_torch(home: Path) -> None:
    made = fake(home, thresholds=(2.0,))
    made.write()
    (home / "plan.json").write_text(json.dumps(made.plan.to_json()))
    program = (
        "import sys, json, pathlib\n"
        "from tuning.report.build import write_report\n"
        "heavy = {'jinja2', 'matplotlib', 'numpy', 'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from tuning.plan import Plan\n"
        "home = pathlib.Path(sys.argv[1])\n"
        "write_report(Plan.from_json(json.loads((home / 'plan.json').read_text())), home)\n"
        "heavy = {'torch', 'transformers', 'trl', 'wandb'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program, str(home)], check=True)


def test_why_a_sweetspot_is_missing_is_a_field_and_drawn(home: Path) -> None:
    made = fake(home, thresholds=(20.0, 2.0, 1.1))
    made.write()
    rows = gather(made.plan, home)
    causes = {row.rule: row.cause for row in rows if row.rule}
    assert [(rule.setting, cause) for rule, cause in causes.items()] == [
        ("20.0", "met_by_base"), ("2.0", ""), ("1.1", "unreached"),
    ]  # fmt: skip
    assert all(row.cause == causes[row.rule] for row in rows if row.role == "fork")
    spot = next(row for row in rows if row.role == "sweetspot" and row.cause == "unreached")
    assert spot.best_measured and f"(best {spot.best_measured:.3g})" in spot.note
    write_report(made.plan, home)
    figures = re.findall(r'<svg [^>]*aria-label="([^"]*)">(.*?)</svg>', html(home), re.DOTALL)
    drawn = dict(figures)
    assert "met by the base model" in drawn["The chain of runs"]
    assert f"never reached, lowest {spot.best_measured:.2f}" in drawn["The chain of runs"]
    perplexity = drawn["Perplexity over SFT examples"]
    colours = {row.rule.setting: Palette(rows).name(row) for row in rows if row.rule}
    assert f"--{colours['1.1']})" in perplexity and f"--{colours['20.0']})" not in perplexity


def test_a_fork_without_a_budget_says_so(home: Path) -> None:
    made = fake(home, sft_data=1000, total_data=1000, thresholds=(1.5,))
    made.write()
    forks = [row for row in gather(made.plan, home) if row.role == "fork"]
    assert [row.cause for row in forks] == ["no_budget_left"]
    write_report(made.plan, home)
    assert "no examples left" in html(home)


def test_preference_tuning_alone_is_compared_with_sft_on_the_same_budget(home: Path) -> None:
    made = fake(home)
    made.write()
    whole = compare(gather(made.plan, home)).about("whole_budget")
    assert [c.ours.role for c in whole] == ["fork", "fork", "fork", "reference_pt"]


def test_the_figure_has_rings_for_models_that_left_examples_unspent(home: Path) -> None:
    made = fake(home, thresholds=(2.0, 1.6))
    made.write()
    write_report(made.plan, home)
    figure = re.search(r'aria-label="pass@1 against the share.*?</svg>', html(home), re.DOTALL)
    assert figure
    tips = re.findall(r"<title>([^:<]*): \d", figure[0])
    assert sorted(tips) == sorted([
        "base model", "SFT to ppl 2.0", "SFT to ppl 1.6", "DPO from ppl 2.0", "DPO from ppl 1.6",
        "SFT, whole budget", "DPO only, whole budget",
    ])  # fmt: skip
    assert "the rest of the budget unspent" in figure[0]


def test_a_plan_that_says_nothing_about_itself_has_a_report(home: Path) -> None:
    made = fake(home, thresholds=(2.0,))
    made.write()
    made.plan.about = {}
    write_report(made.plan, home)
    assert tuple(table(home)[0]) == (*COLUMNS, "format")
    assert "<h1>Spend all 3,000 examples on SFT</h1>" in html(home)


def test_the_format_rate_stands_beside_the_score(home: Path) -> None:
    made = fake(home, thresholds=(2.0,))
    made.in_form = {"tiny": 0.03}
    made.write()
    printed = write_report(made.plan, home)
    rates = {row["stage"]: row["format"] for row in table(home) if row["format"]}
    assert rates["base"] == "0.03" and rates["sft"] == "0.98"
    header, *_, base = [line for line in printed.splitlines() if re.match(r"run |tiny ", line)]
    assert "format" in header and " 3%" in base
    page = html(home)
    assert "<th>format</th>" in page and "<td>3%</td>" in page
    assert "rarely gave it: “base model” in 3% of its answers." in page


def test_where_answers_are_in_form_and_prompts_fit_nothing_is_said(home: Path) -> None:
    made = fake(home, thresholds=(2.0,))
    made.write()
    write_report(made.plan, home)
    assert "rarely gave it" not in html(home)
    assert "longer than the context" not in html(home)


def test_prompts_beyond_the_context_are_said(home: Path) -> None:
    made = fake(home, thresholds=(2.0,))
    made.beyond_context = 7
    made.write("pretrain", "base")
    write_report(made.plan, home)
    assert "longer than the context of the model (7 of 200 for “base model”)" in html(home)


def test_the_files_of_the_page_are_installed() -> None:
    root = Path(__file__).parents[2]
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["tuning.report"]
    package = root / "tuning" / "report"
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    assert installed == set((package / "templates").iterdir())
    assert {path.name for path in installed} >= {"page.html.jinja", "style.css"}


def test_labels_are_spread_but_stay_in_order() -> None:
    assert spread([0.5], 0.1) == [0.5]
    assert spread([0.0, 1.0], 0.1) == [0.0, 1.0]
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.0, 0.0, 0.05], 0.1, 0.0, 1.0) == pytest.approx([0.0, 0.1, 0.2])
    placed = spread([0.9, 0.1, 0.92, 0.95], 0.1, 0.0, 1.0)
    assert placed == pytest.approx([0.8, 0.1, 0.9, 1.0])

"""An experiment that comes as a YAML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_site import use
from tuning.plan import Plan, Stage, save_plan
from tuning.runs.errors import UserError
from tuning.submit import main, prefetch

pytestmark = pytest.mark.unit

BUDGET = """
base_model: tiny
dataset: arith
task: math
sft_ratio: [0, 0.5]
train_sizes: 20
pft_method: dpo
do_training: yes
do_sft_first: on
do_inference: false
"""
SWEETSPOT = """
model: tiny
dataset: arith
task: math
sft_data: 100
total_data: 300
perplexity_thresholds: [2.0]
do_sft: true
do_dpo: true
no_references: true
grid: {pft_beta: [0.2, 0.4], seed: [1, 2]}
"""


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


@pytest.fixture
def shown(tmp_path, capsys):
    """What a dry run of a file prints."""

    def run(text: str, *flags: str) -> str:
        (tmp_path / "e.yaml").write_text(text)
        assert main([str(tmp_path / "e.yaml"), "--launcher", "local", "--dry_run", *flags]) == 0
        return capsys.readouterr().out

    return run


def test_a_file_holds_the_flags_of_an_experiment(shown):
    found = shown(BUDGET)
    assert "tiny_sft-arith-10_pt-arith-10 " in found and "tiny_pt-arith-20 " in found
    assert "--do_training" in found and "--do_inference" not in found


def test_flags_after_the_file_beat_it(shown):
    found = shown(BUDGET, "--train_sizes", "40", "--do_inference", "y")
    assert "tiny_pt-arith-40 " in found and "tiny_pt-arith-20 " not in found
    assert "--do_inference" in found


def test_every_combination_of_a_grid_is_part_of_the_experiment(shown):
    found = shown(SWEETSPOT)
    commands = [line for line in found.splitlines() if "run_dpo.py" in line]
    for beta in (0.2, 0.4):
        for seed in (1, 2):
            assert [c for c in commands if f"--beta {beta} " in c and f"--seed {seed} " in c]


def test_one_combination_keeps_the_name_of_its_experiment(shown):
    one = SWEETSPOT.partition("grid:")[0] + "pft_beta: 0.2\nseed: 1"
    grid = SWEETSPOT.partition("grid:")[0] + "grid: {pft_beta: [0.2], seed: [1]}"
    assert shown(one) == shown(grid)


def test_a_budget_takes_the_settings_of_sft_and_preference_tuning(capsys):
    """The flags of a sweetspot experiment, but its rules."""
    words = [
        "--base_model",
        "tiny",
        "--dataset",
        "arith",
        "--task",
        "math",
        "--sft_ratio",
        "0.5",
        "--train_sizes",
        "20",
        "--pft_method",
        "dpo",
        "--do_training",
        "--do_sft_first",
        "--sft_learning_rate",
        "1e-3",
        "--pft_beta",
        "0.7",
        "--max_seq_length",
        "99",
        "--launcher",
        "local",
        "--dry_run",
    ]
    assert main(words) == 0
    sft, pt = _commands(capsys.readouterr().out)
    assert "--learning_rate 0.001" in sft and "--max_seq_length 99" in sft
    assert "--beta 0.7" in pt and "--max_seq_length 99" in pt
    with pytest.raises(UserError, match="unknown flag '--perplexity_thresholds'"):
        main([*words, "--perplexity_thresholds", "2.0"])


def _commands(shown: str) -> list[str]:
    lines = shown.splitlines()
    return [
        next(line for line in lines if script in line) for script in ("run_sft.py", "run_dpo.py")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "e.yaml' holds no flags; see tuning submit --help"),
        ("- a", "e.yaml is ['a']; it must be a mapping."),
        (BUDGET + "task: math", "gives the key 'task' twice, in line 4 and in line 11; keep one."),
        (BUDGET + "seed: ", "e.yaml: seed is empty; it must be a value or a list."),
        (BUDGET + "seed: []", "e.yaml: seed is []; it must be a value or a list."),
        (BUDGET + "seed: [1, ~]", "e.yaml: seed is ['1', None]; it must be a value or a list."),
        (BUDGET + "seed: {a: b}", "e.yaml: seed is {'a': 'b'}; it must be a value or a list."),
        (BUDGET + "do_evaluation: maybe", "--do_evaluation is 'maybe'; it must be y or n"),
        (
            SWEETSPOT + "no_early_stop: maybe",
            "e.yaml: no_early_stop is 'maybe'; it must be true or false.",
        ),
        (BUDGET + "seeed: 3", "Did you mean '--seed'?"),
        (BUDGET + "do-training: true", "e.yaml gives do_training twice"),
        (BUDGET + "seed: 1\ngrid: {seed: [1, 2]}", "e.yaml gives seed beside grid and under it"),
        (BUDGET + "grid: [seed]", "e.yaml: grid is ['seed']; it must be a mapping."),
        (BUDGET + "grid: {seed: 1}", "e.yaml: grid: seed is '1'; it must be a list of values."),
        (BUDGET + "grid: {seed: []}", "e.yaml: grid: seed is []; it must be a list of values."),
    ],
)
def test_what_cannot_be_is_one_line(shown, text, message):
    with pytest.raises(UserError) as caught:
        shown(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_finished_keeps_its_name_here_too(tmp_path, home):
    """Nothing is written, and nothing begins."""
    folder = home / "outputs" / "reports" / "mine"
    other = Stage(name="x", role="sft", hash="0" * 64, script="run_sft.py", phases=("train",))
    save_plan(folder, Plan(experiment="mine", stages=(other,), about={"models": ["large"]}))
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    (tmp_path / "e.yaml").write_text(BUDGET)
    with pytest.raises(UserError, match=r"'mine' is another plan, of which 'x' is not finished"):
        main([str(tmp_path / "e.yaml"), "--launcher", "local", "--experiment", "mine"])
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert not (home / "models").exists() and not (folder / "stages").exists()


def test_the_help_of_prefetch_is_its_own(capsys):
    with pytest.raises(SystemExit):
        prefetch(["--help"])
    told = capsys.readouterr().out
    assert told.startswith("usage: tuning prefetch") and "is not fetched again" in told

"""The front door: flags beat variables, all that is missing is told at once, and questions are
asked until they are answered.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from tests.small_site import use
from tuning.autotune.config import AutotuneConfig, add_autotune_flags
from tuning.experiments import questions as front
from tuning.experiments.budget import Budget, budget_plan
from tuning.flags import Parser
from tuning.runs.errors import UserError

pytestmark = pytest.mark.unit

FLAGS = (
    "--task", "math", "--dataset", "arith", "--sft_ratio", "0.25", "--base_model", "tiny",
    "--pft_method", "dpo",
)  # fmt: skip
VARIABLES = {
    "TASK": "math", "DATASET": "arith", "SFT_RATIO": "0.25", "BASE_MODEL": "tiny",
    "PFT_METHOD": "dpo",
}  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path) -> Path:
    return use(monkeypatch, tmp_path)


def parsed(*flags: str) -> argparse.Namespace:
    parser = Parser()
    front.add_flags(parser)
    add_autotune_flags(parser, switch=False)
    return parser.parse_args(flags)


def wanted(*flags: str, **environ: str) -> Budget:
    return front.wanted(parsed(*flags), environ)


def test_flags_and_variables_name_the_same_budget():
    asked = Budget(
        task="math", dataset="arith", sft_ratios=(Decimal("0.25"),), base_models=("tiny",),
        pft_methods=("dpo",),
    )  # fmt: skip
    assert wanted(*FLAGS) == wanted(**VARIABLES) == asked
    assert budget_plan(wanted(*FLAGS, "--do_training", "--do_sft_first"))[0].stages


def test_lists_make_a_grid():
    made = wanted(
        "--task", "math", "--dataset", "arith", "--sft_ratio", "0", ".5", "1,0.75",
        "--base_model", "tiny", "big", "--pft_method", "dpo,kto", "--train_sizes", "100", "200",
        "--seed", "1", "2",
    )  # fmt: skip
    assert made.sft_ratios == tuple(map(Decimal, ("0", "0.5", "1", "0.75")))
    assert (made.base_models, made.pft_methods) == (("tiny", "big"), ("dpo", "kto"))
    assert (made.train_sizes, made.seeds) == ((100, 200), (1, 2))
    by_variable = wanted(
        TASK="math", DATASET="arith", SFT_RATIO="0, .5 1,0.75", BASE_MODEL="tiny big",
        PFT_METHOD=" dpo,kto ", TRAIN_SIZES="100 200",
    )  # fmt: skip
    assert by_variable.sft_ratios == made.sft_ratios
    assert by_variable.train_sizes == made.train_sizes and by_variable.seeds == ()
    assert by_variable.pft_methods == made.pft_methods


def test_a_flag_beats_its_variable():
    environ = VARIABLES | {"DO_TRAINING": "y", "TRAIN_SIZES": "50", "SEED": "7"}
    made = wanted("--sft_ratio", "1", "--do_training", "n", "--train_sizes", "20", **environ)
    assert made.sft_ratios == (Decimal(1),) and made.train_sizes == (20,)
    assert not made.do_training and made.dataset == "arith" and made.seeds == ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--do_training",), True),
        (("--do_training", "y"), True),
        (("--do-training", "YES"), True),
        (("--do_training", "1"), True),
        (("--do_training=true",), True),
        (("--do_training", "n"), False),
        (("--do_training", "No"), False),
        (("--do_training", "0"), False),
        (("--do_training=false",), False),
        ((), False),
    ],
)
def test_yes_and_no_have_many_spellings(words, expected):
    assert wanted(*words, *FLAGS).do_training is expected


def test_the_experiment_may_be_named_by_the_command_that_has_the_flags():
    parser = Parser()
    front.add_flags(parser)
    parser.add_argument("--experiment")
    assert front.wanted(parser.parse_args([*FLAGS, "--experiment", "x"]), {}).experiment == "x"


MISSING = ["task", "dataset", "sft_ratio", "base_model", "pft_method"]


@pytest.mark.parametrize(
    ("flags", "environ", "missing"),
    [
        ((), {}, MISSING),
        (("--task", "math"), {"SFT_RATIO": " "}, ["dataset", *MISSING[2:]]),
        (("--sft_ratio", "1.0"), {"TASK": "math"}, ["dataset", "base_model"]),
        (("--sft_ratio", "1.0", "0.5"), VARIABLES | {"PFT_METHOD": ""}, ["pft_method"]),
        (("--task", ""), VARIABLES, ["task"]),
    ],
)  # fmt: skip
def test_all_that_is_missing_is_told_at_once(flags, environ, missing):
    with pytest.raises(UserError) as error:
        wanted(*flags, **environ)
    names = ", ".join(f"--{name} ({name.upper()})" for name in missing)
    assert str(error.value) == f"missing: {names}; give each as a flag or as the variable."


def test_sft_alone_needs_no_method():
    made = wanted(**(VARIABLES | {"SFT_RATIO": "1.00 1", "PFT_METHOD": ""}))
    assert made.pft_methods == ()


@pytest.mark.parametrize(
    ("flags", "environ", "message"),
    [
        ((), {"DO_TRAINING": "maybe"}, r"^DO_TRAINING is 'maybe'; it must be y or n"),
        (("--do_inference", "2"), {}, r"^--do_inference is '2'; it must be y or n"),
        (("--sft_ratio", "half"), {}, r"^--sft_ratio is 'half'; it must be a number from 0 to 1"),
        ((), {"SFT_RATIO": "0.1 2"}, r"^SFT_RATIO is '2'; it must be a number from 0 to 1"),
        ((), {"TRAIN_SIZES": "1k"}, r"^TRAIN_SIZES is '1k'; it must be a whole number of at least"),
        ((), {"TRAIN_SIZES": "0"}, r"^TRAIN_SIZES is '0'; .* at least 1"),
        (("--train_sizes", "2.5"), {}, r"^--train_sizes is '2.5'"),
        (("--seed", "-1"), {}, r"^--seed is '-1'; .* at least 0"),
        (("--autotune", "perhaps"), {}, r"^--autotune is 'perhaps'; it must be y or n"),
        (("--time_budget", "60"), {}, r"^--time_budget is for --autotune; add it"),
    ],
    ids=str,
)
def test_a_bad_value_is_one_line_that_names_where_it_came_from(flags, environ, message):
    with pytest.raises(UserError, match=message) as error:
        wanted(*flags, **(VARIABLES | environ))
    assert "\n" not in str(error.value)


def test_autotune_may_be_declined():
    assert wanted("--autotune", "n", **VARIABLES) == wanted(AUTOTUNE="n", **VARIABLES)
    assert wanted(AUTOTUNE="n", **VARIABLES).autotune is None


def test_autotune_is_asked_for_by_flag_or_variable():
    assert wanted(AUTOTUNE="y", **VARIABLES).autotune == AutotuneConfig()
    found = wanted("--autotune", "--strategy", "grid", **VARIABLES).autotune
    assert found == AutotuneConfig(strategy="grid")


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ((), {}, False),
        ((), {"TASK": "", "DATASET": "  "}, False),
        ((), {"TRAIN_SIZES": "100", "DO_TRAINING": "y", "SEED": "1"}, False),
        ((), {"PFT_METHOD": "dpo"}, True),
        (("--do_training",), {}, True),
        (("--seed", "1"), {}, True),
        (("--task", "math"), {}, True),
    ],
)
def test_a_budget_is_given_by_any_flag_or_by_one_of_five_variables(flags, environ, expected):
    assert front.given(parsed(*flags), environ) is expected


class Terminal:
    """A person with answers, and what was shown."""

    def __init__(self, *answers: str) -> None:
        self.answers: Iterator[str] = iter(answers)
        self.shown = ""

    def read(self) -> str:
        try:
            return next(self.answers)
        except StopIteration:
            raise EOFError from None

    def say(self, text: str) -> None:
        self.shown += text

    def ask(self, **environ: str) -> Budget:
        return front.ask(self.read, self.say, environ)


QUESTIONS = [
    "Select task:", "Select dataset:", "Select sft ratio:", "Select base model:",
    "Select pft method:", "Do you want to perform training? (y/N): ",
    "Do you want to perform inference? (y/N): ", "Do you want to perform evaluation? (y/N): ",
    "Do you want to run SFT first before DPO? (y/N): ",
]  # fmt: skip


def test_questions_come_in_order_with_numbered_menus():
    person = Terminal("1", "1", "2", "1", "3", "y", "yes", "Y", "n")
    assert person.ask() == Budget(
        task="math", dataset="arith", sft_ratios=(Decimal("0.5"),), base_models=("tiny",),
        pft_methods=("grpo",), do_training=True, do_inference=True, do_evaluation=True,
    )  # fmt: skip
    places = [person.shown.index(question) for question in QUESTIONS]
    assert places == sorted(places)
    assert person.shown.startswith("1) math\n2) instruction\nSelect task: ")
    assert "1) arith\n2) mine\nSelect dataset: " in person.shown
    assert "later" not in person.shown
    assert "1) 0.0\n2) 0.5\n3) 1.0\nSelect sft ratio: " in person.shown


def test_names_do_as_well_as_numbers_and_nothing_is_no():
    person = Terminal("gsm8k", "mine", ".5", "big", "kto", "", "n", "NO")
    made = person.ask(TRAIN_SIZES="20")
    assert (made.task, made.dataset, made.base_models) == ("math", "mine", ("big",))
    assert (made.sft_ratios, made.pft_methods, made.train_sizes) == (
        (Decimal("0.5"),), ("kto",), (20,),
    )  # fmt: skip
    assert not (made.do_training or made.do_inference or made.do_evaluation or made.do_sft_first)
    assert QUESTIONS[-1] not in person.shown


def test_a_ratio_means_the_same_in_any_spelling_but_a_number_of_the_menu_is_that():
    for answer, ratio in {"1": "0", "3": "1", "1.00": "1", "0": "0", "0.50": "0.5"}.items():
        made = Terminal("1", "1", answer, "1", "1", "", "", "").ask()
        assert made.sft_ratios == (Decimal(ratio),)


def test_what_is_off_the_list_is_asked_again():
    person = Terminal("3", "", "mth", "math", "0", "1", "2", "1", "1", "maybe", "", "", "")
    assert person.ask().task == "math"
    assert "'3' is not on the list; give a number from 1 to 2 or a name" in person.shown
    assert "'' is not on the list" in person.shown
    assert "'mth' is not on the list" in person.shown and "Did you mean 'math'" in person.shown
    assert person.shown.count("Select task: ") == 4
    assert "'maybe' is neither; answer y or n." in person.shown
    assert person.shown.count("perform training?") == 2


@pytest.mark.parametrize("answered", range(len(QUESTIONS)))
def test_the_end_of_the_input_names_the_question(answered):
    answers = ("1", "1", "2", "1", "1", "y", "y", "y", "y")
    with pytest.raises(UserError) as error:
        Terminal(*answers[:answered]).ask()
    assert f"“{QUESTIONS[answered].strip()}”" in str(error.value)


def test_variables_are_checked_before_the_first_question():
    for environ in ({"TRAIN_SIZES": "many"}, {"AUTOTUNE": "perhaps"}):
        person = Terminal()
        with pytest.raises(UserError, match=next(iter(environ))):
            person.ask(**environ)
        assert person.shown == ""


def test_questions_are_shown_on_the_error_stream(capsys):
    assert front.ask(Terminal("1", "1", "2", "1", "1", "", "", "").read).pft_methods == ("dpo",)
    captured = capsys.readouterr()
    assert "Select task: " in captured.err and captured.out == ""

"""slurm/run.sh as a person uses it: with flags, with variables, through a pipe and at a terminal.

Every call is a dry run, which needs no cluster and writes nothing.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import COLLECTIONS
from tuning.config import CHECKOUT

RUN = CHECKOUT / "slurm" / "run.sh"
CHOICES = ("TASK", "DATASET", "SFT_RATIO", "BASE_MODEL", "PFT_METHOD", "TRAIN_SIZES", "AUTOTUNE",
           "DO_TRAINING", "DO_INFERENCE", "DO_EVALUATION", "DO_SFT_FIRST")  # fmt: skip
POINT = {
    "TASK": "math", "DATASET": "arith", "SFT_RATIO": "0.25", "BASE_MODEL": "tiny",
    "PFT_METHOD": "dpo",
}  # fmt: skip
ALL = {"DO_TRAINING": "y", "DO_SFT_FIRST": "y", "DO_INFERENCE": "y", "DO_EVALUATION": "y"}
STAGES = ["tiny-base", "tiny_sft-arith-250", "tiny_sft-arith-250_pt-arith-750"]
ANSWERS = ["math", "arith", "0.5", "tiny", "dpo", "y", "n", "n", "y"]
QUESTIONS = [
    "Select task:", "Select dataset:", "Select sft ratio:", "Select base model:",
    "Select pft method:", "together (default 1000): ", "perform training? (y/N): ",
    "perform inference? (y/N): ", "perform evaluation? (y/N): ",
    "run SFT first before DPO? (y/N): ",
]  # fmt: skip
ASKED = [*ANSWERS[:5], "", *ANSWERS[5:]]
"""The answers of a person at a terminal, who is asked for the budget too."""


def environment(home: Path, **choices: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in CHOICES}
    return kept | {
        "TUNING_HOME": str(home), "TUNING_COLLECTIONS": str(COLLECTIONS), "PYTHON": sys.executable,
    } | choices  # fmt: skip


def run(
    home: Path, *flags: str, answers: str = "", script: Path = RUN, **choices: str
) -> subprocess.CompletedProcess[str]:
    """Run run.sh from another folder, with `answers` on its standard input."""
    return subprocess.run(
        ["bash", str(script), *flags, "--dry_run"], env=environment(home, **choices),
        input=answers, capture_output=True, text=True, timeout=120, check=False, cwd=home.anchor,
    )  # fmt: skip


def shown(done: subprocess.CompletedProcess[str], *stages: str) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in stages:
        assert stage in done.stdout, done.stdout


def test_variables_name_a_point(home: Path) -> None:
    shown(run(home, **POINT, **ALL), *STAGES)
    assert list(home.iterdir()) == []


def test_flags_name_a_grid_and_beat_variables(home: Path) -> None:
    flags = ["--sft_ratio", "0", "0.25", "1.00", "--do_sft_first", "y"]
    done = run(home, *flags, **(POINT | ALL | {"SFT_RATIO": "0.5", "DO_SFT_FIRST": "n"}))
    shown(done, *STAGES, "tiny_pt-arith-1000", "tiny_sft-arith-1000")
    assert "arith-500" not in done.stdout


def test_what_is_rounded_is_told(home: Path) -> None:
    done = run(home, **(POINT | ALL | {"SFT_RATIO": "0.01", "TRAIN_SIZES": "250"}))
    shown(done, "tiny_sft-arith-3", "tiny_sft-arith-3_pt-arith-247")
    assert "is 2.5: SFT takes 3 and preference tuning 247" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"TASK": "math"}, "missing: --dataset (DATASET), --sft_ratio (SFT_RATIO), "),
        (POINT | {"DO_TRAINING": "maybe"}, "DO_TRAINING is 'maybe'; it must be y or n"),
        (POINT | {"AUTOTUNE": "perhaps"}, "AUTOTUNE is 'perhaps'; it must be y or n"),
        (POINT | {"BASE_MODEL": "tyni", **ALL}, "Did you mean 'tiny'?"),
        (POINT, "nothing to do"),
        (POINT | ALL | {"DO_SFT_FIRST": "n"}, "'tiny_sft-arith-250' is not trained yet"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(
    home: Path, choices: dict[str, str], message: str
) -> None:
    done = run(home, **choices)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert list(home.iterdir()) == []


def test_a_pipe_answers_the_questions(home: Path) -> None:
    done = run(home, answers="\n".join(ANSWERS) + "\n", TRAIN_SIZES="100")
    shown(done, "tiny_sft-arith-50", "tiny_sft-arith-50_pt-arith-50")


@pytest.mark.parametrize("lines", [0, 1, 4, 8])
def test_a_pipe_that_ends_early_starts_nothing(home: Path, lines: int) -> None:
    done = run(home, answers="".join(f"{answer}\n" for answer in ANSWERS[:lines]))
    assert done.returncode == 2 and "the input ended at the question" in done.stderr
    assert "tiny_" not in done.stdout


def test_a_terminal_answers_the_questions(home: Path) -> None:
    code, told = at_terminal(home, list(zip(QUESTIONS, ASKED, strict=True)))
    assert code == 0, told
    assert "tiny_sft-arith-500_pt-arith-500" in told
    assert "1) math" in told and "2) instruction" in told
    assert "Start these stages?" not in told, "a dry run needs no consent"


def test_a_person_says_how_large_the_budget_is(home: Path) -> None:
    answers = list(zip(QUESTIONS, ASKED, strict=True))
    answers[5:6] = [(QUESTIONS[5], "few"), (QUESTIONS[5], "0"), (QUESTIONS[5], "40, 80")]
    code, told = at_terminal(home, answers)
    assert code == 0 and "'few' is not: give a whole number above 0, or several." in told
    assert "tiny_sft-arith-20_pt-arith-20" in told and "tiny_sft-arith-40_pt-arith-40" in told


def test_a_variable_that_says_how_large_the_budget_is_leaves_no_question(home: Path) -> None:
    answers = [pair for pair in zip(QUESTIONS, ASKED, strict=True) if pair[0] != QUESTIONS[5]]
    code, told = at_terminal(home, answers, TRAIN_SIZES="60")
    assert code == 0 and QUESTIONS[5] not in told
    assert "tiny_sft-arith-30_pt-arith-30" in told


@pytest.mark.parametrize("answer", ["n", "", "\x04", "\x03"])
def test_nothing_starts_without_consent(home: Path, answer: str) -> None:
    consent = "Start these stages? (y/N): "
    dialogue = [*zip(QUESTIONS, ASKED, strict=True), (consent, answer)]
    code, told = at_terminal(home, dialogue, flags=["--launcher", "local"])
    assert code == {"\x04": 2, "\x03": 130}.get(answer, 0), told
    shown = told.replace("\r", "").partition("experiment ")[2]
    assert "on this machine:\n  pretrain: 1 stage\n  sft: 1 stage\n  pft: 1 stage\n" in shown
    assert "are free under TUNING_HOME" in shown
    assert ("nothing was submitted" in shown) == (answer != "\x04")
    assert list(home.iterdir()) == []


def test_end_of_input_at_a_terminal(home: Path) -> None:
    code, told = at_terminal(home, [("Select task:", "math"), ("Select dataset:", "\x04")])
    assert code == 2, told
    assert "Select dataset:" in told and "the input ended" in told


def at_terminal(
    home: Path,
    dialogue: Sequence[tuple[str, str]],
    flags: Sequence[str] = ("--dry_run",),
    **variables: str,
) -> tuple[int, str]:
    """Exit code and screen of run.sh at a terminal, where each prompt is given its answer."""
    own, theirs = pty.openpty()
    process = subprocess.Popen(
        ["bash", str(RUN), *flags], env=environment(home, **variables), stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True, cwd=home.anchor,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    screen, start = "", 0
    try:
        for prompt, answer in dialogue:
            while prompt not in screen[start:]:
                text = _read(own)
                assert text, f"no '{prompt}' in: {screen}"
                screen += text
            start = screen.index(prompt, start) + len(prompt)
            os.write(own, (answer if answer in ("\x03", "\x04") else f"{answer}\n").encode())
        while text := _read(own):
            screen += text
        return process.wait(timeout=60), screen
    finally:
        process.kill()
        os.close(own)


def _read(own: int, seconds: float = 60) -> str:
    """What comes next; "" at the end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if select.select([own], [], [], 0.2)[0]:
            try:
                return os.read(own, 4096).decode(errors="replace")
            except OSError:
                return ""
    return ""


def test_it_finds_its_checkout_through_a_link_and_needs_no_virtual_environment(
    home: Path, tmp_path: Path
) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(RUN)
    shown(run(home, script=link, **POINT, **ALL), *STAGES)
    copy = tmp_path / "copy"
    (copy / "slurm").mkdir(parents=True)
    shutil.copy(RUN, copy / "slurm/run.sh")
    (copy / "tuning").mkdir()
    (copy / "tuning/__init__.py").touch()
    (copy / "tuning/cli.py").write_text("import sys\nprint('cli of the copy', *sys.argv[1:])\n")
    done = run(home, "--task", "a b", script=copy / "slurm/run.sh")
    assert done.stdout == "cli of the copy submit --prompt --task a b --dry_run\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean() -> None:
    subprocess.run(["shellcheck", str(RUN)], check=True)
    assert os.access(RUN, os.X_OK)

"""How entry points end: exit codes, and one line for what is known."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from tuning.entry import exit_code
from tuning.runs import outcome
from tuning.runs.errors import Interrupted, Skipped, StageFailed, UserError, choose

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such\n  model"), 2, "error: no such model\n"),
        (StageFailed("disk is full"), 1, "error: disk is full\n"),
        (Interrupted(), 75, "stopped; everything is saved, the same command resumes\n"),
        (KeyboardInterrupt(), 130, "stopped at once; the same command resumes from the last "
                                   "checkpoint\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1,
         "error: No space left on device '/x'; free space and run again; half-written files are "
         "ignored\n"),
        (OSError(errno.ENOLCK, "No locks available"), 1,
         "error: No locks available; put TUNING_HOME on another file system and run again; "
         "half-written files are ignored\n"),
        (OSError(errno.EXDEV, "Another device", "/x"), 1,
         "error: Another device '/x'; fix that and run again; half-written files are ignored\n"),
    ],
)  # fmt: skip
def test_known_ends_are_one_line(capsys, error, code, line):
    def main() -> int:
        raise error

    assert exit_code(main) == code
    assert capsys.readouterr() == ("", line)


def test_a_stage_without_work_says_why_and_is_no_failure(capsys):
    def main() -> int:
        raise Skipped("perplexity never reached 2.0", "unreached")

    assert exit_code(main) == 0
    assert capsys.readouterr() == ("skipped: perplexity never reached 2.0\n", "")


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (75, 75)])
def test_what_main_returns_is_the_code(value, code):
    assert exit_code(lambda: value) == code


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(errno.EINVAL, "ours"), OSError("x")])
def test_our_own_mistakes_keep_their_traceback(error):
    def main() -> int:
        raise error

    with pytest.raises(type(error)):
        exit_code(main)


def test_a_stage_that_goes_on_afresh_keeps_its_process_and_its_supervisor(tmp_path):
    program = tmp_path / "stage.py"
    program.write_text("""
import os, sys
from tuning.entry import run
from tuning.runs.errors import Afresh, UserError
def main():
    print(os.getpid(), *sys.argv[1:], "json.tool" in sys.modules or "LEFT" in os.environ)
    if "--force" in sys.argv:
        import json.tool
        os.environ["LEFT"] = "by a library"
        raise Afresh("once more")
    raise UserError("not like this")
run(main)
""")
    ending = tmp_path / "exit.json"
    words = [sys.executable, "-W", "error", str(program), "--force", "-x"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False,
        env={**os.environ, outcome.EXIT_VARIABLE: str(ending)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "error: not like this\n")
    first, second = done.stdout.splitlines()
    number = first.partition(" ")[0]
    assert first == f"{number} --force -x False"
    assert second == f"{number} -x False"
    assert outcome.read(ending) == outcome.Outcome(code=2, reason="not like this")


def test_run_ends_the_process_and_keeps_it_quiet():
    code = """
import os
from tuning.entry import run
from tuning.runs.errors import UserError
def main():
    print(os.environ["HF_HUB_DISABLE_TELEMETRY"], os.environ["WANDB_SILENT"])
    raise UserError("not like this")
run(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "1 true\n", "error: not like this\n")


def recorded(tmp_path, body: str, **variables: str) -> outcome.Outcome | None:
    """What a process whose `main` does this records as its outcome."""
    code = f"""
import os, subprocess, sys
from tuning.entry import run
from tuning.runs.errors import Interrupted, Skipped, UserError
def main():
    {body}
run(main)
"""
    told = {"TUNING_EXIT": str(tmp_path / "exit"), **variables}
    subprocess.run(
        [sys.executable, "-c", code], env=os.environ | told, capture_output=True, check=False
    )
    return outcome.read(tmp_path / "exit")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return 0", outcome.Outcome(code=0)),
        ("raise UserError('no such\\n  model')", outcome.Outcome(code=2, reason="no such model")),
        (
            "raise Skipped('never reached 2.0', 'unreached')",
            outcome.Outcome(code=0, reason="never reached 2.0", skipped="unreached"),
        ),
        ("raise ValueError('ours')", outcome.Outcome(code=1, reason="ValueError: ours")),
        ("os._exit(3)", None),
    ],
)
def test_how_a_process_ended_is_recorded(tmp_path, body, expected):
    assert recorded(tmp_path, body) == expected


def test_what_a_process_starts_does_not_record_its_own_end(tmp_path):
    inner = "from tuning.entry import run; run(lambda: 2)"
    body = f"subprocess.run([sys.executable, '-c', {inner!r}]); os._exit(0)"
    assert recorded(tmp_path, body) is None


def test_of_several_ranks_the_first_failure_is_recorded_and_success_by_rank_0(tmp_path):
    assert recorded(tmp_path, "return 0", RANK="1") is None
    assert recorded(tmp_path, "raise Interrupted", RANK="1") is None
    failed = recorded(tmp_path, "raise ValueError('shapes')", RANK="1")
    assert failed == outcome.Outcome(code=1, reason="ValueError: shapes")
    assert recorded(tmp_path, "raise ValueError('peer is gone')", RANK="0") == failed


def test_choose_names_the_nearest_and_the_hint():
    assert choose("fruit", "pear", ["apple", "pear"]) == "pear"
    with pytest.raises(UserError) as caught:
        choose("fruit", "aple", ["apple", "pear"], "More in the shop.")
    assert str(caught.value) == (
        "unknown fruit 'aple'; choose from: apple, pear. Did you mean 'apple'? More in the shop."
    )
    with pytest.raises(UserError, match=r"choose from: apple, pear\.$"):
        choose("fruit", "zzzzzz", ["apple", "pear"])


PRINTS = """
from tuning.entry import run
from tuning.runs.errors import UserError
from tuning.runs.log import logger
def main():
    print("┌─ pass@1 ± 0.1 ─┐ \\udc80")
    logger.info("├ é ┤")
    logger.warning("├ é ┤")
    raise UserError("model 'größe' ✗")
run(main)
"""


@pytest.mark.parametrize(
    ("encoding", "kept"), [("ascii", ""), ("latin-1", "±é ö ß"), ("utf-8", "┌─┐├┤±éöß✗")]
)
def test_a_terminal_shows_what_it_can_and_nothing_fails(encoding, kept):
    done = subprocess.run(
        [sys.executable, "-c", PRINTS],
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    lines = (done.stdout + done.stderr).decode(encoding).splitlines()
    assert len(lines) == 4
    assert "pass@1" in lines[0] and lines[-1].startswith("error: model 'gr")
    assert all(letter in "".join(lines) for letter in kept)


FULL = """
import errno, os
from tuning.entry import run
def main():
    folder = os.environ["FOLDER"]
    open(f"{folder}/{'n' * 300}", "w")
run(main)
"""


def test_whatever_a_file_system_refuses_is_one_line_with_the_place(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FULL], env=os.environ | {"FOLDER": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: File name too long '{tmp_path}/nnn")
    assert "choose shorter names and run again" in done.stderr
    assert len(done.stderr.splitlines()) == 1

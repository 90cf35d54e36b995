"""How entry points end: exit codes, and one line for what is known."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from tuning.entry import exit_code
from tuning.runs.errors import Interrupted, StageFailed, UserError, choose

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such\n  model"), 2, "error: no such model\n"),
        (StageFailed("disk is full"), 1, "error: disk is full\n"),
        (Interrupted(), 75, "stopped; all is saved, the same command continues\n"),
        (KeyboardInterrupt(), 130, "stopped at once; the same command continues from the last "
                                   "checkpoint\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 1,
         "error: No space left on device '/x'; nothing half-written counts, run again\n"),
    ],
)  # fmt: skip
def test_known_ends_are_one_line(capsys, error, code, line):
    def main() -> int:
        raise error

    assert exit_code(main) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (75, 75)])
def test_what_main_returns_is_the_code(value, code):
    assert exit_code(lambda: value) == code


@pytest.mark.parametrize("error", [ValueError("ours"), OSError(errno.ENOENT, "gone", "/x")])
def test_our_own_mistakes_keep_their_traceback(error):
    def main() -> int:
        raise error

    with pytest.raises(type(error)):
        exit_code(main)


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


def test_choose_names_the_nearest_and_the_hint():
    assert choose("fruit", "pear", ["apple", "pear"]) == "pear"
    with pytest.raises(UserError) as caught:
        choose("fruit", "aple", ["apple", "pear"], "More in the shop.")
    assert str(caught.value) == (
        "unknown fruit 'aple'; choose from: apple, pear. Did you mean 'apple'? More in the shop."
    )
    with pytest.raises(UserError, match=r"choose from: apple, pear\.$"):
        choose("fruit", "zzzzzz", ["apple", "pear"])

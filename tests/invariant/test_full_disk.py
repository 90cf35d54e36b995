"""A disk that fills up in the middle of a checkpoint leaves the last whole one, and the run says
so.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import check, run_entry, run_script
from tuning.config import PACKAGE
from tuning.runs import manifest

FLAGS = ("--model", "tiny", "--dataset", "arith", "--task", "math", "--train_size", "160",
         "--do_training", "--save_steps", "4")  # fmt: skip

LIMITED = """
import resource, runpy, sys, threading, time, pathlib
run = pathlib.Path(sys.argv[1])
def limit():
    while not (run / "checkpoint-8" / "manifest.json").exists():
        time.sleep(0.005)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
threading.Thread(target=limit, daemon=True).start()
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


SUDDEN = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def limited(home: Path, code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """Run an entry point by a program that limits what it may write."""
    program = home.parent / "limited.py"
    program.write_text(code)
    return run_script(home, program, *words, cwd=home.parent)


@pytest.mark.parametrize(
    "command",
    [
        ("run_pretrain.py", "--model", "tiny", "--max_steps", "4", "--save_every_steps", "2"),
        ("run_sft.py", *FLAGS[:-2], "--save_steps", "1000", "--perplexity_thresholds", "5.2"),
    ],
    ids=["a checkpoint of pre-training", "a sweetspot"],
)
def test_whatever_cannot_be_written_is_said_in_one_line(
    tiny_home: Path, command: tuple[str, ...]
) -> None:
    script, *flags = command
    full = limited(tiny_home, SUDDEN, PACKAGE / script, *flags)
    assert full.returncode == 1, full.stderr[-3000:]
    assert "could not be written" in full.stderr
    assert "Traceback" not in full.stderr


def test_the_last_whole_checkpoint_is_left_and_named(tiny_home: Path) -> None:
    run = tiny_home / "models" / "tiny_sft-arith-160"
    full = limited(tiny_home, LIMITED, run, PACKAGE / "run_sft.py", *FLAGS)
    said = full.stderr.strip().splitlines()[-1]
    assert full.returncode == 1, full.stderr[-3000:]
    assert "could not be written" in said
    newest = manifest.newest_whole(run)
    assert newest is not None
    assert f"the last whole checkpoint is {newest.name}" in said
    assert "Traceback" not in full.stderr
    assert [path for _, path in manifest.checkpoints(run) if not manifest.is_whole(path)] == []

    check(run_entry(tiny_home, "run_sft.py", *FLAGS))
    assert (run / "model" / "adapter_model.safetensors").exists()

"""Forked commands are what real starts are: the same results, exit codes, signals and words.

Of pre-training and of SFT on the engine, test_pretrain.py and test_engine_sft.py ask it: there a
real start is stopped, and forks end what it began.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import warm
from tests.conftest import check, copy_home, environment, run_entry, run_script
from tests.warm_process import UNUSED
from tuning.config import CHECKOUT, PACKAGE

DATA = ("--model", "tiny", "--dataset", "arith", "--task", "math")
COMMANDS = {
    "sft": ("run_sft.py", *DATA, "--train_size", 48, "--perplexity_thresholds", 5.0,
            "--do_training", "--do_inference", "--do_evaluation"),
    **{
        method: ("run_dpo.py", *DATA, "--train_size", 16, "--pft_method", method, "--do_training")
        for method in ("dpo", "kto", "grpo")
    },
}  # fmt: skip


def written(home: Path) -> dict[str, bytes]:
    """All weights and answers of a home, by their path."""
    found = [*home.rglob("*.safetensors"), *home.rglob("responses.jsonl")]
    return {str(path.relative_to(home)): path.read_bytes() for path in found}


@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_those_of_a_real_start(trained_home: Path, tmp_path: Path, name: str) -> None:
    script, *flags = COMMANDS[name]
    forked, real = (copy_home(trained_home, tmp_path / kind) for kind in ("forked", "real"))
    check(run_entry(forked, script, *flags))
    words = [sys.executable, str(PACKAGE / script), *map(str, flags)]
    subprocess.run(words, env=environment(real), check=True, stdout=subprocess.DEVNULL)
    assert written(forked) == written(real)
    assert written(forked).keys() > written(trained_home).keys()


TELL = """
import atexit, os, sys
import beside
atexit.register(print, "left")
print(__name__, __file__, sys.argv, sys.path[0], os.getcwd(), sys.stdin.read(), sys.flags)
print(sorted((k, v) for k, v in os.environ.items() if not k.startswith("PYTEST_")))
print(sorted(name for name in sys.modules if name.partition(".")[0] in ("tests", "tuning")))
print("wrong\\rwords", file=sys.stderr)
sys.exit({ending})
"""


@pytest.mark.unit
@pytest.mark.parametrize("ending", ["0", "75", "'a line'", "1 / 0", "os.kill(os.getpid(), 9)"])
def test_a_program_finds_what_a_real_start_finds(home: Path, ending: str) -> None:
    (home / "beside.py").touch()
    program = home / "program.py"
    program.write_text(TELL.format(ending=ending))
    forked = run_script(home, program, "a", 1, cwd=home)
    real = subprocess.run(
        [sys.executable, str(program), "a", "1"], env=environment(home), cwd=home, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.stderr.splitlines()[0] == "wrong"
    assert forked.stderr.splitlines()[-1] == real.stderr.splitlines()[-1]


PARENT = """
import logging, os, pathlib, signal, subprocess, sys, threading
from tuning.entry import QUIET
from tuning.runs import log
log.configure()
os.environ.update(QUIET)
signal.signal(signal.SIGTERM, lambda *_: print("the handler of the parent"))
os.set_inheritable(os.open(__file__, os.O_RDONLY), True)
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("before", end=" ")
flags, words = sys.argv[1].split(), sys.argv[2:]
with pathlib.Path("log").open("ab") as file:
    child = subprocess.Popen(
        [sys.executable, *flags, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=file, env=os.environ | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
        cwd=os.getcwd(), text=True,
    )
told = child.communicate()[0]
print(child.returncode, f"{child.pid} {os.getpid()} {child.pid}" in told)
print(told.replace(str(child.pid), "ME").replace(str(os.getpid()), "PARENT"))
print(pathlib.Path("log").read_text().splitlines()[-1:])
"""
CHILD = """
import atexit, logging, os, signal, sys, threading
print("forked", "torch" in sys.modules)
atexit.register(print, "left")
print(os.getpid(), os.getppid(), os.getsid(0), os.getcwd())
print(__name__, sys.argv, sys.path[0], sys.stdin.read(), sys.stdout.write_through)
print([n for n in os.listdir("/proc/self/fd") if int(n) > 3], threading.active_count())
print([(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), os.environ["PYTHONUNBUFFERED"])
print([name for name in sys.modules if name.partition(".")[0] == "tuning"])
import tuning.runs.log
print(logging.getLogger("tuning").handlers)
print("last words", file=sys.stderr)
{ending}
"""


@pytest.mark.unit
@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(75)",
        "sys.exit('a line')",
        "1 / 0",
        "os.kill(os.getpid(), 15)",
        "raise KeyboardInterrupt",
    ],
)
@pytest.mark.parametrize("flags", ["", "-P -m"])
def test_what_a_command_starts_finds_it_too(home: Path, ending: str, flags: str) -> None:
    """A child of a forked command, as a launcher has supervisors: a fork as well."""
    parent = home / "parent.py"
    parent.write_text(PARENT)
    (home / "tests").mkdir()
    (home / "tests/__init__.py").touch()
    (home / "tests/child.py").write_text(CHILD.format(ending=ending))
    words = [str(parent), flags, "tests.child" if flags else "tests/child.py", "a"]
    where = environment(home) | {"PYTHONPATH": f"{home}:{PACKAGE.parent}"}
    forked = warm.run(words, where, home, timeout=60)
    real = subprocess.run(
        [sys.executable, *words], env=where, cwd=home, text=True, stdin=subprocess.DEVNULL,
        capture_output=True, check=False,
    )  # fmt: skip
    assert "forked True" in forked.stdout, forked.stdout + forked.stderr
    assert forked.stdout.replace("forked True", "forked False") == real.stdout
    assert (forked.returncode, forked.stderr) == (real.returncode, real.stderr) == (0, "")


ROWS = """
import json, subprocess, sys, zlib
from tuning.data import arith, loaders
made = arith.pools.cache_info().currsize
print("found" if made else "made", arith.__file__)
print(loaders.arith is arith is sys.modules["tuning.data.arith"])
print(zlib.crc32(json.dumps(arith.pools()).encode()))
if len(sys.argv) > 1:
    subprocess.run([sys.executable, sys.argv[0]], check=True)
"""


@pytest.mark.unit
def test_rows_that_are_found_are_those_that_would_be_made(home: Path) -> None:
    program = home / "program.py"
    program.write_text(ROWS)
    forked = check(run_script(home, program, "and a child", cwd=home)).stdout.splitlines()
    real = subprocess.run(
        [sys.executable, str(program)], env=environment(home), cwd=home, text=True,
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert forked == [*real.replace("made", "found").splitlines()] * 2


STATE = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
for name, module in sorted(sys.modules.items()):
    if name.partition(".")[0] != "tuning":
        continue
    print(name)
    for key, value in sorted(vars(module).items()):
        if hasattr(value, "cache_info"):
            made = name in ("tuning.data.arith", "tuning.data.ifsynth")
            print("   ", key, made or value.cache_info().currsize)
        elif not key.startswith("__"):
            try:
                print("   ", key, json.dumps(value))
            except (TypeError, ValueError):
                pass
"""


@pytest.mark.unit
def test_modules_that_are_found_are_those_that_would_be_imported(home: Path) -> None:
    """The same modules, as unused: their values and what they remember."""
    program = home / "program.py"
    program.write_text(STATE)
    forked = check(run_script(home, program, *UNUSED, cwd=home)).stdout
    real = subprocess.run(
        [sys.executable, str(program), *UNUSED], env=environment(home), cwd=home, text=True,
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert forked == real
    assert real.count("\ntuning.") > 100


@pytest.mark.unit
def test_rows_are_made_by_the_code_that_is_run(home: Path) -> None:
    """Another copy of the project makes its own."""
    other = home / "tuning"
    for module in PACKAGE.rglob("*.py"):
        copied = other / module.relative_to(PACKAGE)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(module, copied)
    program = home / "program.py"
    program.write_text(ROWS)
    told = check(run_script(home, program, cwd=home)).stdout
    assert told.splitlines()[0] == f"made {other / 'data/arith.py'}"


WAIT = """
import signal, sys, time, pathlib
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.mark.unit
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_process_in_the_background_gets_signals(home: Path, number: int, code: int) -> None:
    program, begun = home / "program.py", home / "begun"
    program.write_text(WAIT)
    process = warm.start([str(program), str(begun)], environment(home), home)
    while not begun.exists():
        assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert process.poll() == code
    process.send_signal(number)


@pytest.mark.unit
def test_libraries_say_nothing_when_they_are_imported(home: Path) -> None:
    assert warm.said_by_libraries(environment(home)) == ""


OTHER = """
import os, sys
from tests import warm
process = warm.start(["-m", "tuning.cli", "--help"], dict(os.environ), os.getcwd())
print(warm.parent_of(process.pid), process.wait(timeout=60))
"""


@pytest.mark.unit
def test_processes_that_test_share_what_forks_and_one_ends_without_the_others(home: Path) -> None:
    if os.environ.get("TUNING_REAL_STARTS") == "1" or torch.cuda.is_available():
        pytest.skip("nothing is forked if that is asked for, or beside a GPU")
    process = warm.start(["-m", "tuning.cli", "--help"], environment(home), home)
    parent = warm.parent_of(process.pid)
    assert parent != os.getpid()
    ours = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    shared = environment(home) | {"PYTEST_XDIST_TESTRUNUID": ours, "PYTHONPATH": str(CHECKOUT)}
    other = subprocess.run(
        [sys.executable, "-c", OTHER], env=shared, cwd=home, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert other.stdout == f"{parent} 0\n", other.stderr
    assert process.wait(timeout=60) == 0
    again = warm.start(["-m", "tuning.cli", "--help"], environment(home), home)
    assert warm.parent_of(again.pid) == parent
    assert again.wait(timeout=60) == 0

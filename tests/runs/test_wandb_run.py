"""W&B is reported to when it can be, kept offline otherwise, and never waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tuning.runs.wandb_run import report_to

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Nothing of W&B in the environment before, and nothing after."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]


class Answering(BaseHTTPRequestHandler):
    """Says yes to whatever it is asked."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch):
    """A server that answers."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{made.server_port}")
        yield made
        made.shutdown()


@pytest.fixture
def silent(monkeypatch):
    """A port that takes connections and never answers, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield listening


def report(mode: str, tmp_path: Path) -> list[str]:
    return report_to(mode, tmp_path / "run", "0123456789abcdef" * 4)


def test_off_is_off(tmp_path, said):
    assert report("off", tmp_path) == []
    assert os.environ["WANDB_MODE"] == "disabled"
    assert said == []


def test_offline_names_the_project_and_the_run(tmp_path, said):
    assert report("offline", tmp_path) == ["wandb"]
    assert said == []
    found = {k: v for k, v in os.environ.items() if k.startswith("WANDB_")}
    assert found == {
        "WANDB_MODE": "offline",
        "WANDB_PROJECT": "tuning",
        "WANDB_RUN_ID": "0123456789abcdef",
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(tmp_path / "run"),
        "WANDB_SILENT": "true",
    }


def test_a_project_of_ones_own_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    report("offline", tmp_path)
    assert os.environ["WANDB_PROJECT"] == "mine"


def test_without_a_key_it_is_offline_and_nobody_is_called(tmp_path, silent, said):
    assert report("online", tmp_path) == ["wandb"]
    assert os.environ["WANDB_MODE"] == "offline"
    assert len(said) == 1
    assert said[0].startswith(
        "warning: W&B: no key is set (WANDB_API_KEY); this run is kept offline"
    )
    silent.settimeout(0.2)
    with pytest.raises(TimeoutError):
        silent.accept()


@pytest.mark.parametrize("key", ["environment", "netrc"])
def test_with_a_key_and_a_server_it_is_online(tmp_path, monkeypatch, server, key, said):
    if key == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    else:
        netrc = tmp_path / ".netrc"
        netrc.write_text(f"machine 127.0.0.1 login user password {'k' * 40}\n")
        netrc.chmod(0o600)
    assert report("online", tmp_path) == ["wandb"]
    assert os.environ["WANDB_MODE"] == "online"
    assert said == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "https://nowhere.invalid"])
def test_a_server_that_cannot_be_reached_is_given_up_soon(tmp_path, monkeypatch, url, said):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    began = time.monotonic()
    assert report("online", tmp_path) == ["wandb"]
    assert time.monotonic() - began < 10
    assert os.environ["WANDB_MODE"] == "offline"
    assert "does not answer" in said[0]


@pytest.mark.parametrize("url", ["http://[x", "host", "http://"])
def test_an_address_that_is_none_is_named(tmp_path, monkeypatch, url, said):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    assert report("online", tmp_path) == ["wandb"]
    assert os.environ["WANDB_MODE"] == "offline"
    assert f"WANDB_BASE_URL '{url}' names no server" in said[0]


def test_a_server_that_never_answers_is_given_up_soon(tmp_path, monkeypatch, silent):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    began = time.monotonic()
    assert report("online", tmp_path) == ["wandb"]
    assert time.monotonic() - began < 10
    assert os.environ["WANDB_MODE"] == "offline"


def test_a_damaged_netrc_is_no_key(tmp_path, said):
    (tmp_path / ".netrc").write_text("machine\nx y z")
    report("online", tmp_path)
    assert os.environ["WANDB_MODE"] == "offline"
    assert "no key is set" in said[0]


TRAINS = """
import os, sys
from pathlib import Path
from tuning.runs import log
from tuning.runs.wandb_run import Reported, report_to
log.configure()
directory = Path(sys.argv[1])
if "wandb" in report_to("offline", directory, "0123456789abcdef" * 4):
    told = Reported("run", {"x": 1})
    for step in range(3):
        told.log({"step": step, "loss": float("nan") if step else 1.0})
        if step == 1 and sys.argv[2] == "dies":
            import signal, subprocess
            us = str(os.getpid())
            for pid in subprocess.run(["pgrep", "-P", us], capture_output=True).stdout.split():
                os.kill(int(pid), signal.SIGKILL)
    told.finish()
print("trained")
"""


def trains(tmp_path: Path, how: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    run = tmp_path / "run"
    run.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", TRAINS, str(run), how], env=kept | variables,
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def test_a_run_is_kept_offline(tmp_path):
    done = trains(tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "trained\n", "")
    assert len(list(tmp_path.glob("run/wandb/offline-run-*/*.wandb"))) == 1


BROKEN = {
    "no-package": {"wandb.py": "raise ImportError('no wandb here')"},
    "half-a-package": {"wandb.py": ""},
    "no-start": {"wandb.py": "def init(**_): raise RuntimeError('no home directory')"},
    "no-log": {
        "wandb.py": "class Run:\n"
        "    def log(self, *_, **__): raise BrokenPipeError('gone')\n"
        "    finish = log\n"
        "def init(**_): return Run()"
    },
    "no-finish": {
        "wandb.py": "class Run:\n"
        "    def log(self, *_, **__): pass\n"
        "    def finish(self): raise OSError('gone')\n"
        "def init(**_): return Run()"
    },
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_fails_of_it_is_one_warning_and_training_goes_on(tmp_path, how):
    """A package of our own stands for one that fails in a way of its own."""
    for name, text in BROKEN[how].items():
        (tmp_path / name).write_text(text)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = trains(tmp_path, PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (0, "trained\n")
    assert done.stderr.startswith("warning: W&B is off for this run, ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("how", ["no-home", "dies"])
def test_the_real_one_without_a_home_or_killed_ends_no_training(tmp_path, how):
    variables = {"HOME": "/proc/none"} if how == "no-home" else {}
    done = trains(tmp_path, how, **variables)
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    if how == "dies":
        assert "warning: W&B is off for this run, " in done.stderr

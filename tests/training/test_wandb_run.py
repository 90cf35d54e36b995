"""W&B is reported to when it can be, kept offline otherwise, and never waited for."""

from __future__ import annotations

import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tuning.training.wandb_run import report_to

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

"""Weights & Biases: on when it is asked for and can be had, offline otherwise, and never a prompt,
a hang or the end of a training: where anything of it fails, it is off, with one warning.
"""

from __future__ import annotations

import http.client
import importlib
import netrc
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tuning.runs.log import logger

T = TypeVar("T")
PROJECT = "tuning"
PROBE_SECONDS = 4.0


def report_to(mode: str, directory: Path, run_hash: str) -> list[str]:
    """What the Trainer reports to; sets wandb's environment. `mode`: off, offline or online.

    A run keeps its id over interruptions. `online` without a key, or without a way to the server,
    is offline; where the package cannot be imported, nothing is reported.
    """
    if mode != "off" and _attempt("import", lambda: importlib.import_module("wandb")) is None:
        mode = "off"
    if mode == "off":
        os.environ["WANDB_MODE"] = "disabled"
        return []
    if mode == "online" and (missing := _missing()):
        logger.warning(f"W&B: {missing}; this run is kept offline, `wandb sync` uploads it later")
        mode = "offline"
    os.environ |= {
        "WANDB_MODE": mode,
        "WANDB_PROJECT": os.environ.get("WANDB_PROJECT", PROJECT),
        "WANDB_RUN_ID": run_hash[:16],
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(directory),
        "WANDB_SILENT": "true",
    }
    return ["wandb"]


class Reported:
    """A run of W&B in this process; `log` and `finish` do nothing once it has failed."""

    def __init__(self, name: str, settings: Any) -> None:
        def start() -> Any:
            import wandb

            return wandb.init(name=name, config=settings)

        self._run = _attempt("start", start)

    def log(self, record: Mapping[str, Any]) -> None:
        """Report the metrics of a step."""
        values = {name: value for name, value in record.items() if name != "step"}
        self._do("log", lambda run: run.log(values, step=record["step"]))

    def finish(self) -> None:
        """End the run; what it has is written."""
        self._do("finish", lambda run: run.finish())
        self._run = None

    def _do(self, what: str, call: Callable[[Any], object]) -> None:
        run = self._run
        if run is not None and _attempt(what, lambda: (call(run),)) is None:
            self._run = None


def _attempt(what: str, call: Callable[[], T]) -> T | None:
    """What a call of W&B returns; None, and a warning, where it fails in whatever way."""
    try:
        return call()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        logger.warning(f"W&B is off for this run, {what} failed ({reason}); training goes on")
        return None


def _missing() -> str | None:
    """Why W&B cannot be online; None if it can."""
    url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    if not host:
        return f"WANDB_BASE_URL '{url}' names no server"
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(host):
        return "no key is set (WANDB_API_KEY)"
    return None if _answers(url) else f"{host} does not answer"


def _answers(url: str) -> bool:
    """Whether a server answers within PROBE_SECONDS; a connection alone says nothing of that."""
    answers = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError, http.client.HTTPException):
            return
        answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PROBE_SECONDS)
    return bool(answers)


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, ValueError, netrc.NetrcParseError):
        return False

"""Weights & Biases: on when it is asked for and can be had, offline otherwise, and never a prompt
or a hang.
"""

from __future__ import annotations

import netrc
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from tuning.runs.log import logger

PROJECT = "tuning"
PROBE_SECONDS = 4.0


def report_to(mode: str, directory: Path, run_hash: str) -> list[str]:
    """What the Trainer reports to; sets wandb's environment. `mode`: off, offline or online.

    A run keeps its id over interruptions. `online` without a key, or without a way to the server,
    is offline.
    """
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


def _missing() -> str | None:
    """Why W&B cannot be online; None if it can."""
    server = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = server.hostname or "api.wandb.ai"
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(host):
        return "no key is set (WANDB_API_KEY)"
    return None if _answers(server.geturl()) else f"{host} does not answer"


def _answers(url: str) -> bool:
    """Whether a server answers within PROBE_SECONDS; a connection alone says nothing of that."""
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError:
            pass
        except (OSError, ValueError):
            return
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(PROBE_SECONDS)


def _in_netrc(host: str) -> bool:
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False

"""Faults of a trial process: with this folder on PYTHONPATH, the real trial misbehaves as
TUNING_TEST_FAULT says, from its first moment. Nothing else that starts with it does.
"""

import os
import signal
import sys
import time
from pathlib import Path


def _misbehave(fault: str, folder: Path) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(3600)
    if fault == "exit":
        print("something went wrong", flush=True)
        os._exit(1)
    if fault == "nothing":
        os._exit(0)
    if fault == "half":
        (folder / "rank0.json").write_text('{"outcome": "ok", "steps": [0.1, 0.')
        os._exit(0)
    if fault == "garbage":
        (folder / "rank0.json").write_text(
            '{"outcome": "ok", "note": "", "finite": true, "steps": [-1.0], "peak": 5}'
        )
        os._exit(0)
    if fault == "memory":
        held = []
        while True:
            held.append(bytearray(os.urandom(1) * (16 << 20)))
            time.sleep(0.005)
    if fault == "child":
        if os.fork() == 0:
            os.setsid()
            (folder.parent / "child").write_text(str(os.getpid()))
        time.sleep(3600)


_words = getattr(sys, "orig_argv", [])
if "tuning.autotune.trial" in _words and os.environ.get("TUNING_TEST_FAULT"):
    _misbehave(os.environ["TUNING_TEST_FAULT"], Path(_words[-1]).parent)

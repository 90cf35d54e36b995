"""The process behind tests/warm.py: it has imported what commands import and forks one for each.

Run by warm.py as `python warm_server.py FD NAME ...`, where FD is a socket to which the processes
that test connect and the names are those of variables that commands set themselves. It imports what
the project depends on and nothing of the project, whose code every command imports anew, but for
warm_process.KEPT. It trains nothing and starts no thread. Where that cannot be had, it tells so
whoever connects. It ends with the last connection.

A request is one JSON message with four files: standard input, output and error of the command, and
where to tell its process number and, once it has ended, its exit code (-N for signal N).
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    import warm_process

    sys.path.pop(0)  # This folder: nothing else may be imported from it.

import contextlib
import gc
import importlib
import json
import os
import select
import socket
from pathlib import Path
from typing import Any

LIBRARIES = (
    "numpy", "torch", "transformers", "datasets", "peft", "trl", "wandb", "numba", "tabulate",
    "nltk", "matplotlib.figure", "matplotlib.axes", "matplotlib.backends.backend_svg",
    "torch.distributed.checkpoint", "torch.distributed.optim", "torch.distributed.run",
    "torch.profiler",
    "torch.utils.serialization", "transformers.models.qwen3.modeling_qwen3",
    "trl.trainer.sft_trainer", "trl.trainer.dpo_trainer", "trl.trainer.kto_trainer",
    "trl.trainer.grpo_trainer", "peft.utils.transformers_weight_conversion",
)  # fmt: skip


def import_libraries() -> None:
    """What commands would import one by one."""
    for library in LIBRARIES:
        importlib.import_module(library)
    conversions = importlib.import_module("transformers.conversion_mapping")
    conversions.get_checkpoint_conversion_mapping("")  # a table that is compiled when first read
    # What it takes to compile anything is imported with the first function.
    importlib.import_module("numba").njit("int64(int64)")(lambda number: number)


def spare_names() -> None:
    """torchrun names the methods whose events it records, which nobody reads, by walking over all
    modules that are imported: a second in each first process, where there are thousands.
    """
    recording = importlib.import_module("torch.distributed.elastic.rendezvous.dynamic_rendezvous")
    recording.get_method_name = lambda depth=2: "a method"


def unfit() -> str:
    """Why a fork of this process would not be as good as a new one."""
    import torch

    if torch.cuda.is_available():
        return "a process that has seen a GPU cannot share it with its forks"
    names = warm_process.native_threads()
    return f"threads run: {', '.join(sorted(names))}" if names else ""


def serve(listening: socket.socket, welcome: bytes) -> dict[str, Any] | None:
    """Fork a process for each request until all that have connected are gone; `welcome` is what
    each of them is told first.

    Returns None then; and in the forked process its request, with the files in place.
    """
    running: dict[int, tuple[int, int]] = {}
    connected: dict[int, socket.socket] = {}
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                told(ready, *running.pop(ready))
                continue
            if ready == listening.fileno():
                connection, _ = listening.accept()
                connection.send(welcome)
                connected[connection.fileno()] = connection
                poll.register(connection, select.POLLIN)
                continue
            message, files, _, _ = socket.recv_fds(connected[ready], 1 << 20, 4)
            if not message:
                poll.unregister(ready)
                connected.pop(ready).close()
                if not connected:
                    return None
                continue
            if (pid := os.fork()) == 0:
                for watch, (_, reply) in running.items():
                    os.close(watch)
                    os.close(reply)
                for connection in (listening, *connected.values()):
                    connection.close()
                put(files)
                return dict(json.loads(message))
            for file in files[:3]:
                os.close(file)
            watch = os.pidfd_open(pid)
            running[watch] = (pid, files[3])
            poll.register(watch, select.POLLIN)
            say(files[3], pid)


def told(watch: int, pid: int, reply: int) -> None:
    """Tell how a process has ended."""
    _, status = os.waitpid(pid, 0)
    say(reply, os.waitstatus_to_exitcode(status))
    os.close(watch)
    os.close(reply)


def say(reply: int, number: int) -> None:
    """One number; whoever asked may be gone."""
    with contextlib.suppress(BrokenPipeError):
        os.write(reply, b"%d\n" % number)


def put(files: list[int]) -> None:
    """The three files as standard input, output and error."""
    for target, file in enumerate(files[:3]):
        os.dup2(file, target)
    for file in files:
        os.close(file)


if __name__ == "__main__":
    listening = socket.socket(fileno=int(sys.argv[1]))
    environment = dict(os.environ)
    gc.disable()  # what libraries consist of stays
    import_libraries()
    spare_names()
    warm_process.Kept(str(Path(__file__).resolve().parents[1]))
    gc.enable()
    gc.collect()
    gc.freeze()  # the next collections have nothing of all this to go through
    gc.set_threshold(10_000, 20, 20)  # what a command makes is soon gone, or stays to its end
    warm_process.ready(environment, sys.argv[2:], listening.fileno())
    about = {
        "unfit": unfit(),
        "environment": warm_process.fixed(environment),
        "said": os.pread(sys.stdout.fileno(), 4096, 0).decode(),
    }
    if (asked := serve(listening, json.dumps(about).encode())) is not None:
        command = warm_process.Command.parse(asked["words"], asked["environment"])
        assert command is not None, asked["words"]
        warm_process.live(command, asked["environment"], asked["cwd"])

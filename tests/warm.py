"""Commands that start at once: forked from a process that has imported torch, transformers and TRL.

A training at test size takes two seconds and the imports before it take five, so a process that has
them done stands ready (warm_server.py) and forks one for each command of all processes that test.
The fork gets its environment, folder, files and arguments, imports the project's code itself and
runs the script as `__main__`: results, exit codes and signals are those of a real start
(tests/test_warm.py).

Where forks are not as good as real starts, as on a machine with a GPU or in another environment
than the first, commands are started anew; with TUNING_REAL_STARTS=1 all are.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import IO, Any

from tests.warm_process import fixed
from tuning.entry import QUIET

SERVER = Path(__file__).with_name("warm_server.py")


class Forked:
    """What subprocess.Popen is to a real start: a forked process."""

    def __init__(self, told: socket.socket) -> None:
        self._told = told.makefile("rb", buffering=0)
        told.close()
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        line = self._told.readline()
        if not line:
            raise RuntimeError("the process that forks commands is gone")
        return int(line)

    def poll(self) -> int | None:
        """The exit code, -N where signal N ended it; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.returncode = self._number()
            self._told.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended."""
        if self.returncode is None:
            select.select([self._told], [], [], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[bytes]


class _Server:
    """A connection to the process that forks, which the first to connect has started."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        # A name that no file has, and that is free again once the process is gone.
        name = f"\0tuning-warm-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
        self.control = _socket()
        with tempfile.TemporaryFile() as told:
            self._process = _start_server(name, environment, told)
            try:
                _connect(self.control, name)
                about = json.loads(self.control.recv(1 << 20))
            except (OSError, ValueError):
                told.seek(0)
                about = {"unfit": f"the server ended. {told.read().decode()}"}
        self.environment: dict[str, str] = about.get("environment", {})
        """That in which it has imported what it has."""
        self.said: str = about.get("said", "")
        """What the libraries said when they were imported."""
        self.fit = not about["unfit"]
        if not self.fit:
            print(f"commands are started anew: {about['unfit']}", file=sys.stderr)

    def fork(self, request: Mapping[str, Any], files: Sequence[int]) -> Forked:
        """A process with standard input, output and error."""
        ours, theirs = socket.socketpair()
        with theirs:
            told = [json.dumps(request).encode()]
            socket.send_fds(self.control, told, [*files, theirs.fileno()])
        return Forked(ours)

    def end(self) -> None:
        """The process ends if no other is connected; what it has forked does not."""
        self.control.close()


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _connect(control: socket.socket, name: str) -> None:
    """Connect to a socket that listens, or that another process is about to have listen."""
    for later in reversed(range(20)):
        try:
            control.connect(name)
            return
        except ConnectionRefusedError:
            if not later:
                raise
            time.sleep(0.01)


def _start_server(
    name: str, environment: Mapping[str, str], told: IO[bytes]
) -> subprocess.Popen[bytes] | None:
    """Start the process that forks; None if one of that name runs."""
    with _socket() as listening:
        try:
            listening.bind(name)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return None
        listening.listen()
        return subprocess.Popen(
            [sys.executable, str(SERVER), str(listening.fileno()), *QUIET],
            env={**QUIET, **environment, "PYTHONPATH": ""}, pass_fds=[listening.fileno()],
            stdin=subprocess.DEVNULL, stdout=told, stderr=told, cwd="/",
        )  # fmt: skip


_servers: list[_Server] = []


def said_by_libraries(environment: Mapping[str, str]) -> str:
    """What libraries said when the process for an environment imported them, which is missing from
    what forked commands say; nothing where no command is forked.
    """
    server = _server(environment)
    return server.said if server else ""


def end() -> None:
    """No command will follow."""
    while _servers:
        _servers.pop().end()


def _server(environment: Mapping[str, str]) -> _Server | None:
    """The server, started when it is first asked for; None if it is not fit."""
    if not hasattr(os, "pidfd_open") or os.environ.get("TUNING_REAL_STARTS") == "1":
        return None
    if not _servers:
        _servers.append(_Server(environment))
    (server,) = _servers
    if not server.fit:
        return None
    if changed := server.environment.items() ^ fixed({**QUIET, **environment}).items():
        names = ", ".join(sorted({name for name, _ in changed}))
        warnings.warn(f"a command is started anew, for another {names}", stacklevel=2)
    return None if changed else server


def start(
    words: Sequence[str], environment: Mapping[str, str], cwd: str | Path,
    stdout: int | IO[bytes] = subprocess.DEVNULL, stderr: int | IO[bytes] = subprocess.DEVNULL,
    anew: bool = False,
) -> Process:  # fmt: skip
    """`python *words` in the background, without input; `anew` is a real start in any case."""
    server = None if anew else _server(environment)
    if server is None:
        return subprocess.Popen(
            [sys.executable, *words], env=environment, cwd=cwd, stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=stderr,
        )  # fmt: skip
    request = {"words": list(words), "environment": dict(environment), "cwd": str(cwd)}
    with Path(os.devnull).open("r+b") as nothing:
        given = [nothing if to == subprocess.DEVNULL else to for to in (stdout, stderr)]
        files = [to if isinstance(to, int) else to.fileno() for to in (nothing, *given)]
        return server.fork(request, files)


def run(
    words: Sequence[str], environment: Mapping[str, str], cwd: str | Path, timeout: float
) -> subprocess.CompletedProcess[str]:
    """`python *words` to its end, and what it has said."""
    pipes = [os.pipe() for _ in range(2)]
    told = ["", ""]
    readers = [Thread(target=_read, args=(told, n, pipe)) for n, (pipe, _) in enumerate(pipes)]
    process = start(words, environment, cwd, stdout=pipes[0][1], stderr=pipes[1][1])
    for reader, (_, end) in zip(readers, pipes, strict=True):
        os.close(end)
        reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    finally:
        for reader in readers:
            reader.join()
    return subprocess.CompletedProcess([sys.executable, *words], code, *told)


def run_together(
    processes: int, words: Sequence[str], environment: Mapping[str, str], cwd: str | Path,
    timeout: float,
) -> tuple[int, str]:  # fmt: skip
    """`python *words` in several processes that meet as those of torchrun do, at a store that this
    process holds: the exit code of the first that fails, or 0, and all errors.
    """
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as told:
        started = [
            start(words, {**environment, **place, "RANK": rank, "LOCAL_RANK": rank}, cwd,
                  stderr=told.fileno())
            for rank in map(str, range(processes))
        ]  # fmt: skip
        deadline = time.monotonic() + timeout
        codes: list[int | None] = [None]
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.02)
            codes = [process.poll() for process in started]
        for process in started:
            process.kill()
            process.wait()
        told.seek(0)
        codes += [process.returncode for process in started]
        return next((code for code in codes if code), 0), told.read()


def parent_of(pid: int) -> int:
    """The process that started a process; OSError if that is gone."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _read(told: list[str], number: int, pipe: int) -> None:
    """All that comes out of a pipe, until every process has closed its end."""
    with open(pipe, encoding="utf-8") as file:
        told[number] = file.read()

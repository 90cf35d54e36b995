"""What a fork does to be what a newly started Python is, and a Popen that forks where that is as
good. Imported by warm_server.py, and so in what that forks.

A forked command that starts Python again, as a launcher starts supervisors and those their stages,
forks as well: the new process is a child of the one that started it, with the number, the session
and the signals that a real start has.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import io
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PLACE = (
    "RANK", "LOCAL_", "GROUP_", "ROLE_", "WORLD_SIZE", "MASTER_", "TORCHELASTIC_", "TORCH_NCCL_"
)  # fmt: skip
FREE = (
    "TUNING_", "PYTEST_", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONSAFEPATH",
    "PYTHONUNBUFFERED", "WANDB_MODE", *PLACE,
)  # fmt: skip
"""Variables with these beginnings are read by no library when it is imported."""
THREADS = {"jemalloc_bg_thd", "pt_tcpstore_uv"}
"""Threads that a fork need not have: the allocator of pyarrow starts its own again, and the store
of torchrun serves the parent.
"""
OURS = ("tuning", "tests")
"""Packages that every command imports anew, but for KEPT and UNUSED."""
KEPT = (
    "tuning.runs.errors", "tuning.data.rows", "tuning.data.generated", "tuning.data.arith",
    "tuning.data.ifsynth",
)  # fmt: skip
"""Modules without a state, which import of ours only each other: a fork that imports one gets it as
it is, with the rows that are made already, which takes as long as all of its imports.
"""
UNUSED = (
    "tuning.launch", "tuning.phases.work", "tuning.submit", "tuning.launchers.local",
    "tuning.launchers.supervisor", "tuning.report.build", "tuning.tasks.latex",
)  # fmt: skip
"""Modules that import, with each other, what settings and plans are made of, a hundred dataclasses
that take a fifth of a second. Nothing has used them in the process that forks, so its forks get
them as they are; what those start imports them anew.
"""
MODULES = (*OURS, "torch")
"""Packages whose modules are run in forks, by `-m`."""


def fixed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a library may have read when it was imported."""
    return {k: v for k, v in environment.items() if not k.startswith(FREE)}


def native_threads() -> set[str]:
    """Names of the threads of this process that are not Python's and that a fork would miss."""
    known = {os.getpid(), *(thread.native_id for thread in threading.enumerate())}
    tasks = [task for task in Path("/proc/self/task").iterdir() if int(task.name) not in known]
    return {(task / "comm").read_text().strip() for task in tasks} - THREADS


@dataclass(frozen=True)
class Command:
    """What stands behind `python`: `-m module ...` or `script ...`, and the flags before it."""

    words: Sequence[str]
    safe_path: bool = False
    unbuffered: bool = False

    @classmethod
    def parse(cls, words: Sequence[str], environment: Mapping[str, str]) -> Command | None:
        """None for what only a real start understands."""
        flags = [word for word in words[:2] if word in ("-P", "-u")]
        own = list(words[len(flags) :])
        module = own[1].partition(".")[0] if own[:1] == ["-m"] else ""
        if not own or (own[0].startswith("-") and module not in MODULES):
            return None
        return cls(
            own,
            "-P" in flags or bool(environment.get("PYTHONSAFEPATH")),
            "-u" in flags or bool(environment.get("PYTHONUNBUFFERED")),
        )

    def run(self) -> None:
        """As `__main__`; ends by SystemExit, or an error, as a script does."""
        sys.orig_argv[:] = [sys.executable, *self.words]
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        module = self.words[0] == "-m"
        first = Path.cwd() if module else Path(self.words[0]).resolve().parent
        own = [] if self.safe_path else [str(first)]
        sys.path[:] = [*own, *filter(None, given), *_start.path]
        if module:
            sys.argv[:] = self.words[1:]
            runpy.run_module(self.words[1], run_name="__main__", alter_sys=True)
            return
        sys.argv[:] = self.words
        main = types.ModuleType("__main__")
        main.__file__ = self.words[0]
        sys.modules["__main__"] = main
        source = Path(self.words[0]).read_bytes()
        exec(compile(source, self.words[0], "exec", dont_inherit=True), main.__dict__)


class Kept(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the kept modules for what would import them from the same folder."""

    def __init__(self, checkout: str) -> None:
        sys.path.insert(0, checkout)
        self._imports = _imports_of((*KEPT, *UNUSED))
        sys.path.remove(checkout)
        for name in ("tuning.data.arith", "tuning.data.ifsynth"):
            sys.modules[name].pools()
        self._modules = {
            name: module
            for name, module in sys.modules.items()
            if name.partition(".")[0] in OURS and not hasattr(module, "__path__")
        }
        forget_ours()
        sys.meta_path.insert(0, self)

    def forget_used(self) -> None:
        """Of a process that has run a command, only what has no state is kept."""
        self._modules = {name: self._modules[name] for name in KEPT}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        module = self._modules.get(fullname)
        if module is None or str(Path(module.__file__ or "").parent) not in path:
            return None
        return importlib.util.spec_from_loader(fullname, self, origin=module.__file__)

    def get_code(self, fullname: str) -> types.CodeType | None:
        """For `-m`, which runs a module once more."""
        file = str(self._modules[fullname].__file__)
        return importlib.machinery.SourceFileLoader(fullname, file).get_code(fullname)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return self._modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        for name in self._imports.get(module.__name__, ()):
            importlib.import_module(name)


def _imports_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Import modules; returns which of ours each one of ours has imported, in order."""
    asked: dict[str, list[str]] = {}
    real = builtins.__import__

    def noting(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        importer = (globals or {}).get("__name__", "")
        if {importer.partition(".")[0], name.partition(".")[0]} <= {*OURS}:
            parts = [f"{name}.{part}" for part in fromlist or ()]
            asked.setdefault(importer, []).extend([name, *parts])
        return real(name, globals, locals, fromlist, level)

    builtins.__import__ = noting
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        builtins.__import__ = real
    return {
        importer: [name for name in dict.fromkeys(found) if name in sys.modules]
        for importer, found in asked.items()
    }


def forget_ours() -> None:
    """What is imported of ours from now on is imported anew."""
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


class _Start:
    """What a process has when it starts, or when its libraries are imported."""

    def __init__(self) -> None:
        self.path = sys.path[1:]  # without this folder: nothing else may be imported from it
        self.finders: list[Any] = []
        self.environment: dict[str, str] = {}
        self.quiet: set[str] = set()
        self.files: set[int] = set()

    def is_that_of(self, environment: Mapping[str, str]) -> bool:
        """Whether libraries would be imported in the same way; that they are quiet goes without
        saying.
        """
        ours, theirs = self.environment.items(), fixed(environment).items()
        return theirs <= ours and {name for name, _ in ours - theirs} <= self.quiet


_start = _Start()


def _open_files() -> Iterator[int]:
    for file in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):
            os.fstat(int(file.name))
            yield int(file.name)


def ready(environment: Mapping[str, str], quiet: Sequence[str], control: int) -> None:
    """All libraries are imported, in an environment: from here on, Popen forks. `quiet`: variables
    of it that commands set themselves; `control`: a file that a fork closes.
    """
    _start.environment, _start.quiet = fixed(environment), set(quiet)
    _start.files = set(_open_files()) - {0, 1, 2, control}
    _start.finders = list(sys.meta_path)
    weakref.finalize._registry.clear()  # type: ignore[attr-defined]  # to finalize libraries takes long
    subprocess.Popen._execute_child = _execute_child  # type: ignore[attr-defined]


def renew(environment: Mapping[str, str], cwd: str | Path, *, unbuffered: bool) -> None:
    """Make a fork of a process what a new process is, but for the libraries that it has."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.meta_path[:] = _start.finders
    importlib.invalidate_caches()
    logging.getLogger("tuning").handlers.clear()
    logging.getLogger("tuning").filters.clear()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, unbuffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    random.seed()
    sys.modules["numpy"].random.seed()


def _stream(number: int, unbuffered: bool) -> io.TextIOWrapper:
    """Standard input, output or error, as Python opens them."""
    file: Any = io.FileIO(number, "rb" if number == 0 else "wb", closefd=False)
    if number == 0:
        file = io.BufferedReader(file)
    elif not unbuffered:
        file = io.BufferedWriter(file)
    return io.TextIOWrapper(
        file,
        encoding="utf-8",
        errors="backslashreplace" if number == 2 else "strict",
        line_buffering=number == 2 or os.isatty(number),
        write_through=unbuffered and number > 0,
    )


_real = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_parameters = inspect.signature(_real)
_UNKNOWN = {
    "executable": None, "preexec_fn": None, "close_fds": True, "shell": False, "gid": None,
    "gids": None, "uid": None, "umask": -1, "process_group": -1,
}  # fmt: skip
"""Arguments of Popen that are left to a real start, unless they have these values."""
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def _execute_child(self: Any, *given: Any) -> None:
    """Fork if that is as good as a start."""
    asked = _parameters.bind(self, *given).arguments
    environment = os.environ.copy() if asked["env"] is None else dict(asked["env"])
    command = _forkable(asked, environment)
    if command is None:
        _real(self, *given)
        return
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        _live_as_child(command, asked, environment, before)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    self.pid = pid
    self._child_created = True
    self._close_pipe_fds(*(asked[name] for name in _PIPES))


def _forkable(asked: Mapping[str, Any], environment: Mapping[str, str]) -> Command | None:
    """What to run in a fork; None for what has to be started."""
    words = asked["args"]
    if isinstance(words, (str, bytes, os.PathLike)) or str(words[0]) != sys.executable:
        return None
    if any(asked.get(name, value) != value for name, value in _UNKNOWN.items()):
        return None
    if not _start.is_that_of(environment):
        return None
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    if any(Path(path, "sitecustomize.py").exists() for path in filter(None, paths)):
        return None
    if threading.current_thread() is not threading.main_thread() or native_threads():
        return None
    return Command.parse([str(word) for word in words[1:]], environment)


def _live_as_child(
    command: Command, asked: Mapping[str, Any], environment: Mapping[str, str], mask: set[Any]
) -> None:
    """The life of a forked child; nothing returns to the code of its parent."""
    with _to_its_end():
        _put([asked["p2cread"], asked["c2pwrite"], asked["errwrite"]], set(asked["pass_fds"]))
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(-1)
        if asked["start_new_session"]:
            os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        forget_ours()
        for finder in _start.finders:
            if isinstance(finder, Kept):
                finder.forget_used()
        renew(environment, asked["cwd"] or Path.cwd(), unbuffered=command.unbuffered)
        command.run()


def live(command: Command, environment: Mapping[str, str], cwd: str) -> None:
    """Be a new process that runs a command, to its end."""
    with _to_its_end():
        renew(environment, cwd, unbuffered=command.unbuffered)
        command.run()


@contextlib.contextmanager
def _to_its_end() -> Iterator[None]:
    """What is in it is all that this process does; it ends as a script does, but takes nothing
    apart: to destroy what all libraries hold takes a second.
    """
    code = 1
    try:
        yield
        code = 0
    except SystemExit as left:
        code = _exit_code(left)
    except KeyboardInterrupt:
        code = -signal.SIGINT
        sys.excepthook(*sys.exc_info())
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename in (__file__, runpy.__file__):
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
    finally:
        _leave(code)


def _put(files: Sequence[int], passed: set[int]) -> None:
    """Standard input, output and error in place, and no other file open."""
    copies = [os.dup(file) if file != -1 else -1 for file in files]
    for target, file in enumerate(copies):
        if file != -1:
            os.dup2(file, target)
    for file in set(_open_files()) - {0, 1, 2} - passed - _start.files:
        with contextlib.suppress(OSError):
            os.close(file)


def _exit_code(left: SystemExit) -> int:
    if left.code is None or isinstance(left.code, int):
        return (left.code or 0) & 0xFF
    print(left.code, file=sys.stderr)
    return 1


def _leave(code: int) -> None:
    """End as Python ends: threads, what waits for the end, buffers."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        if code == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        os._exit(code)

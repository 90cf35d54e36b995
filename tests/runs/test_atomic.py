"""Files and directories are there whole or not at all."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tuning.runs import atomic
from tuning.runs.json_text import NotJSON

pytestmark = pytest.mark.unit


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_written_with_its_folders_and_replaced(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    atomic.write_json(path, {"x": [1, "ä"]})
    assert atomic.read_json(path) == {"x": [1, "ä"]}
    atomic.write_text(path, "2\n")
    assert path.read_text() == "2\n"
    assert names(path.parent) == ["file.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("value", [{"x": object()}, {"x": {1, 2}}])
def test_what_is_no_json_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "file.json"
    atomic.write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        atomic.write_json(path, value)
    assert atomic.read_json(path) == {"x": 1}
    assert names(tmp_path) == ["file.json"]


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "new \udc80")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands for the disk."""
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")
    code = f"""
import resource, signal
from pathlib import Path
from tuning.runs import atomic
from tuning.runs.json_text import NotJSON
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic.write_text(Path({str(path)!r}), "x" * 100_000)
except OSError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "27\n"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_missing_file_reads_as_none_and_a_damaged_one_raises(tmp_path):
    assert atomic.read_json(tmp_path / "none.json") is None
    (tmp_path / "half.json").write_text('{"x": ')
    with pytest.raises(NotJSON):
        atomic.read_json(tmp_path / "half.json")


def test_a_directory_appears_with_all_its_files(tmp_path):
    target = tmp_path / "runs" / "target"
    with atomic.whole_directory(target) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("1")
        assert not target.exists()
    assert (target / "deep" / "file").read_text() == "1"
    assert names(target.parent) == ["target"]


def test_a_directory_that_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "target"
    with atomic.whole_directory(target) as folder:
        (folder / "old").touch()
    with pytest.raises(ZeroDivisionError), atomic.whole_directory(target) as folder:
        (folder / "new").touch()
        raise ZeroDivisionError
    assert names(target) == ["old"]
    assert names(tmp_path) == ["target"]


def test_a_directory_replaces_the_old_one_and_what_a_kill_left(tmp_path):
    target = tmp_path / "target"
    code = f"""
import os
from pathlib import Path
from tuning.runs import atomic
from tuning.runs.json_text import NotJSON
with atomic.whole_directory(Path({str(target)!r})) as folder:
    (folder / "half").touch()
    os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert not target.exists()
    for content in ("first", "second"):
        with atomic.whole_directory(target) as folder:
            assert names(folder) == []
            (folder / content).touch()
    assert names(target) == ["second"]
    assert names(tmp_path) == ["target"]

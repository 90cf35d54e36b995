"""The code that jobs run: what of a checkout is in a snapshot, and when two share one."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from tests.logged import logged
from tests.small_site import use
from tuning import config as site
from tuning.launchers.slurm import snapshot
from tuning.runs.provenance import REVISION_FILE

pytestmark = pytest.mark.unit

FILES = {
    "collections.yaml": "left: out\n",
    "tuning/__init__.py": "",
    "tuning/run.py": "print('first')\n",
    "tuning/data/chat_templates/chatml.jinja": "{{ messages }}\n",
    "slurm/stage.sbatch": "#!/bin/bash\n",
    "README.md": "words\n",
    ".gitignore": "tuning/models/\n",
}


class Checkout:
    """A small checkout and what was said of its snapshots."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.said: list[str] = []
        for name, text in FILES.items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        """Write a file into the checkout."""
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def git(self, *words: str) -> None:
        """Run git in it."""
        known = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", str(self.root), *known, *words], check=True,
                       capture_output=True)  # fmt: skip

    def take(self) -> Path:
        """Take a snapshot."""
        with logged() as lines:
            found = snapshot.take()
        self.said += lines
        return found


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    """The files of a checkout without git."""
    use(monkeypatch, tmp_path)
    monkeypatch.setattr(site, "CHECKOUT", tmp_path / "checkout")
    return Checkout(tmp_path / "checkout")


@pytest.fixture
def checkout(plain: Checkout) -> Checkout:
    """A checkout of git in which everything is committed."""
    plain.git("init", "-q")
    plain.git("add", ".")
    plain.git("commit", "-qm", "first")
    return plain


def names(folder: Path) -> set[str]:
    """Every file of a snapshot."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_snapshot_holds_what_git_tracks_and_where_it_came_from(checkout):
    found = checkout.take()
    assert found.parent == site.home() / "snapshots"
    assert names(found) == {*FILES, REVISION_FILE}
    assert (found / "tuning" / "run.py").read_text() == "print('first')\n"
    assert (found / REVISION_FILE).read_text().strip()
    assert checkout.said == []


def test_uncommitted_changes_are_in_it(checkout):
    checkout.write("tuning/run.py", "print('second')\n")
    checkout.write("tuning/new.py", "x = 1\n")
    checkout.git("add", "tuning/new.py")
    (checkout.root / "README.md").unlink()
    found = checkout.take()
    assert (found / "tuning" / "run.py").read_text() == "print('second')\n"
    assert (found / "tuning" / "new.py").exists()
    assert not (found / "README.md").exists()
    assert checkout.said == []


def test_untracked_code_is_not_in_it_and_is_warned_about(checkout):
    checkout.write("tuning/forgotten.py", "x = 1\n")
    checkout.write("tuning/notes.txt", "words\n")
    checkout.write("scratch.py", "x = 1\n")
    checkout.write("tuning/models/run/model.py", "weights\n")
    found = checkout.take()
    assert names(found) == {*FILES, REVISION_FILE}
    assert checkout.said == [
        "warning: not tracked by git, so not in the snapshot: tuning/forgotten.py"
    ]


def test_equal_trees_share_one_folder(checkout):
    first = checkout.take()
    before = {path: path.stat().st_ino for path in first.rglob("*")}
    checkout.git("commit", "-q", "--allow-empty", "-m", "second")
    assert checkout.take() == first
    assert {path: path.stat().st_ino for path in first.rglob("*")} == before
    assert [path.name for path in first.parent.iterdir() if path.is_dir()] == [first.name]


def test_an_edit_makes_another_and_taking_it_back_finds_the_first(checkout):
    first = checkout.take()
    checkout.write("tuning/run.py", "print('second')\n")
    second = checkout.take()
    assert second != first
    assert (first / "tuning" / "run.py").read_text() == "print('first')\n"
    checkout.write("tuning/run.py", "print('first')\n")
    assert checkout.take() == first


def test_a_file_under_another_name_makes_another(checkout):
    first = checkout.take()
    checkout.git("mv", "tuning/run.py", "tuning/runs.py")
    assert checkout.take() != first


def test_a_folder_without_git_is_copied_without_its_results(plain):
    plain.write("tuning/__pycache__/run.pyc", "bytes\n")
    plain.write("tuning/models/run/config.json", "{}\n")
    plain.write("tuning/outputs/reports/x/plan.json", "{}\n")
    plain.write("notebooks/a.py", "x = 1\n")
    found = plain.take()
    code = {name for name in FILES if name.startswith(("tuning/", "slurm/"))}
    assert names(found) == {*code, REVISION_FILE}
    assert plain.said == []


def test_without_the_git_command_the_package_is_copied(checkout, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "tuning/run.py" in names(checkout.take())


def test_a_folder_inside_somebody_elses_repository_is_no_checkout(plain, tmp_path):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert "tuning/run.py" in names(plain.take())


def test_what_a_killed_copy_left_is_replaced(checkout):
    found = checkout.take()
    shutil.rmtree(found)
    half = found.parent / f".{found.name}.tmp"
    half.mkdir()
    (half / "rubbish").write_text("x")
    assert checkout.take() == found
    assert names(found) == {*FILES, REVISION_FILE}
    assert not half.exists()


def test_submissions_side_by_side_make_one_whole_snapshot(checkout):
    for number in range(40):
        checkout.write(f"tuning/module{number}.py", "x = 1\n" * 100)
    checkout.git("add", ".")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(checkout.take())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(names(found[0])) == len(FILES) + 41

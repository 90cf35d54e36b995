"""What launching a plan says before anything runs, and where it ends early."""

from __future__ import annotations

import pytest

from tests.small_site import use
from tuning import launch as launching
from tuning.launch import Launch, launch
from tuning.plan import Plan
from tuning.runs.errors import Quit

pytestmark = pytest.mark.unit

NOTHING = Plan(experiment="nothing", stages=())


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path) -> None:
    use(monkeypatch, tmp_path)


def test_flags_for_slurm_alone_are_named_where_stages_run_here(capsys):
    flags = {"partition": "gpu", "processes": 2, "offline": False, "options": ("--exclusive",)}
    options = Launch(
        launcher="local", resources=flags, kinds={"sft": {"cpus": 2}}, dependency="singleton"
    )
    assert launch(NOTHING, options) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    named = "--partition, --offline, --sbatch, --resources, --dependency"
    assert notes == [f"note: nothing is submitted to SLURM here; not used: {named}"]
    assert launch(NOTHING, Launch(launcher="local", resources={"options": ()})) == 0
    assert "note:" not in capsys.readouterr().err


@pytest.mark.parametrize("where", ["launcher_of", "_require_successor"])
def test_ctrl_c_before_anything_is_submitted_says_so(monkeypatch, where):
    def interrupted(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, where, interrupted)
    with pytest.raises(Quit, match="stopped; nothing was submitted"):
        launch(NOTHING, Launch(launcher="slurm"))

"""Which job runs which stage: jobs.json as it is written, read and watched."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tuning.launchers.slurm.ledger import REPORT, Array, Jobs, Task
from tuning.runs import atomic

pytestmark = pytest.mark.unit


def array(token: str, number: int | None, *stages: str, **values) -> Array:
    """An array of stages whose keys are their names in capitals."""
    keys = [stage.upper() for stage in stages]
    return Array(
        token=token, kind="sft", stages=list(stages), keys=keys, number=number, **values
    )  # fmt: skip


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


def test_where_nothing_was_submitted_there_is_nothing(jobs, tmp_path):
    assert (jobs.arrays(), jobs.latest(), jobs.changed()) == ([], {}, (0, 0))
    assert jobs.task_of("a") is None
    assert list(tmp_path.iterdir()) == []


def test_arrays_come_back_as_they_were_written(jobs, tmp_path):
    made = [array("t.1.sft", 7, "a", "b", code="/code", time=1.5, released=True),
            array("t.1.pft", None, "c")]  # fmt: skip
    jobs.write(made)
    assert jobs.path == tmp_path / "slurm" / "jobs.json"
    assert Jobs(tmp_path).arrays() == made


def test_tasks_are_known_once_an_array_has_a_number():
    assert list(array("t.1.sft", None, "a").tasks) == []
    first, second = array("t.1.sft", 7, "a", "b").tasks
    assert second == Task(stage="b", key="B", token="t.1.sft", number=7, index=1)
    assert (first.id, second.id) == ("7_0", "7_1")


def test_the_last_task_of_a_stage_counts(jobs):
    jobs.write([array("t.1.sft", 7, "a", "b"), array("t.2.sft", 9, "b"),
                array("t.3.sft", None, "a")])  # fmt: skip
    assert {stage: task.id for stage, task in jobs.latest().items()} == {"a": "7_0", "b": "9_0"}
    assert jobs.task_of("b").id == "9_0"


def test_what_another_process_writes_is_seen(jobs, tmp_path):
    jobs.write([array("t.1.sft", None, "a")])
    assert jobs.task_of("a") is None
    before = jobs.changed()
    Jobs(tmp_path).write([array("t.1.sft", 7, "a")])
    assert jobs.changed() != before
    assert jobs.task_of("a").id == "7_0"


def test_two_writes_within_a_tick_of_the_clock_are_told_apart(jobs, tmp_path):
    """File systems may give both the same time of change."""
    for number in range(200):
        Jobs(tmp_path).write([array("t.1.sft", number, "a")])
        assert jobs.task_of("a").number == number


def test_a_file_that_did_not_change_is_read_once(jobs, monkeypatch):
    jobs.write([array("t.1.sft", 7, "a")])
    jobs.arrays()
    monkeypatch.setattr(atomic, "read_json", lambda path: pytest.fail("read again"))
    assert jobs.task_of("a").id == "7_0"


def test_what_a_submission_notes_does_not_change_what_was_read(jobs, tmp_path):
    jobs.write([array("t.1.sft", None, "a")])
    jobs.arrays()[0].number = 7
    assert atomic.read_json(jobs.path)["arrays"] == [asdict(array("t.1.sft", None, "a"))]


def test_the_report_is_a_stage_behind_the_others():
    assert (REPORT.name, REPORT.kind, REPORT.parents) == ("report", "report", ())

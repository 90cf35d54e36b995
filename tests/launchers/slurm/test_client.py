"""The door to SLURM: what is asked, and what its answers mean.

Small scripts on the PATH stand for sbatch, squeue and the others; what they print was printed by
SLURM 22.05.
"""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

import pytest

from tuning.launchers.slurm import client as slurm
from tuning.launchers.slurm.client import Job, Node, Refused, Slurm, TooMany, tasks
from tuning.runs.errors import StageFailed, UserError

pytestmark = pytest.mark.unit


class Commands:
    """Makes commands that write down how they were called and answer as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "calls"

    def answer(self, name: str, out: str = "", *, error: str = "", code: int = 0) -> None:
        """Let `name` print `out` and end with `code`."""
        file = self.folder / name
        file.write_text(
            f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> {shlex.quote(str(self.log))}\n'
            f"env > {shlex.quote(str(self.folder))}/environment\n"
            f"printf %s {shlex.quote(out)}\nprintf %s {shlex.quote(error)} >&2\nexit {code}\n"
        )
        file.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        """Every call as a line."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    @property
    def environment(self) -> list[str]:
        """The environment of the last call."""
        return (self.folder / "environment").read_text().splitlines()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """No SLURM on the PATH but what is made."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "env"):
        (folder / name).symlink_to(f"/usr/bin/{name}" if name == "env" else "/bin/sh")
    monkeypatch.setenv("PATH", str(folder))
    return Commands(folder)


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        ([3], "12_3"),
        ([0, 1], "12_[0-1]"),
        ([0, 2], "12_[0,2]"),
        ([0, 3, 4, 5], "12_[0,3-5]"),
        ([5, 4, 3, 0], "12_[0,3-5]"),
        ([0, 1, 2, 7, 9, 10], "12_[0-2,7,9-10]"),
        (list(range(1000)), "12_[0-999]"),
    ],
)
def test_tasks_of_an_array_are_written_as_ranges(indices, words):
    assert tasks(12, indices) == words


SQUEUE = """\
12_0|RUNNING|None|tuning:trial.1.sft|1:02|n1|me
12_1|PENDING|Resources|tuning:trial.1.sft|0:00||me
12_2|PENDING|DependencyNeverSatisfied|tuning:trial.1.sft|0:00||me
13_0|PENDING|JobHeldUser|tuning:a.b.2.pft-1|0:00||me
13_1|CANCELLED|DependencyNeverSatisfied|tuning:a.b.2.pft-1|0:00||me
14|CANCELLED|None|tuning:trial.1.sft|0:00||me
15_3|RUNNING|None|something else|0:10|n2|me
16_0|RUNNING|None|(null)|0:10|n2|me
17_0|COMPLETING|None|tuning:x.1.sft|1-00:00:01|n[1-2]|me
"""


def test_squeue_tells_of_our_tasks_only(commands):
    commands.answer("squeue", SQUEUE)
    found = Slurm().queue()
    assert [job.id for job in found] == [
        "12_0", "12_1", "12_2", "13_0", "13_1", "14_0", "17_0"
    ]  # fmt: skip
    assert found[0] == Job(id="12_0", state="RUNNING", reason="None", token="trial.1.sft",
                           elapsed="1:02", node="n1", user="me")  # fmt: skip
    assert (found[3].token, found[3].number, found[3].index) == ("a.b.2.pft-1", 13, 0)
    assert [job.live for job in found] == [True, True, False, True, False, False, True]
    assert [job.doomed for job in found] == [False, False, True, False, False, False, False]
    assert [job.held for job in found] == [False, False, False, True, False, False, False]
    assert commands.calls == ["squeue --me -h -r -t all -o %i|%T|%r|%k|%M|%N|%u"]


def test_every_job_of_this_user_counts(commands):
    """A limit of jobs is one of all of them."""
    commands.answer("squeue", "11_0\n11_1\n17\n")
    assert Slurm().count() == 3
    assert commands.calls == ["squeue --me -h -r -o %i"]


def test_squeue_is_asked_of_everybody_who_submitted_a_part(commands):
    commands.answer("squeue", SQUEUE)
    other = next(entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != os.getuid())
    Slurm().queue([other, os.getuid(), 4_000_000_001])
    whose = ",".join(map(str, sorted({os.getuid(), other})))
    assert commands.calls[0].startswith(f"squeue -u {whose} -h ")


@pytest.mark.parametrize(
    ("state", "live"),
    [("PENDING", True), ("CONFIGURING", True), ("SUSPENDED", True), ("REQUEUED", True),
     ("COMPLETING", True), ("COMPLETED", False), ("FAILED", False), ("TIMEOUT", False),
     ("CANCELLED", False), ("NODE_FAIL", False), ("OUT_OF_MEMORY", False), ("PREEMPTED", False)],
)  # fmt: skip
def test_which_states_are_still_in_the_queue(state, live):
    assert Job(id="1_0", state=state).live is live


def test_squeue_that_does_not_answer_is_no_empty_queue(commands):
    commands.answer("squeue", error="slurm_load_jobs error: Unable to contact slurm controller",
                    code=1)  # fmt: skip
    with pytest.raises(StageFailed, match="squeue does not answer: Unable to contact slurm"):
        Slurm().queue()


@pytest.mark.parametrize(("said", "number"), [("12\n", 12), ("12;cluster2\n", 12)])
def test_sbatch_says_the_number_of_the_job(commands, tmp_path, said, number):
    commands.answer("sbatch", said)
    assert Slurm().submit(tmp_path / "trial.1.sft.sbatch") == number
    assert commands.calls == [f"sbatch --parsable {tmp_path}/trial.1.sft.sbatch"]


def test_a_refusal_is_said_in_one_line(commands):
    commands.answer(
        "sbatch",
        error="sbatch: error: invalid partition specified: gpu\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
        code=1,
    )
    with pytest.raises(UserError) as error:
        Slurm().submit(Path("/x/trial.1.sft.sbatch"))
    assert str(error.value) == (
        "SLURM refuses trial.1.sft.sbatch: invalid partition specified: gpu; Batch job submission "
        "failed: Invalid partition name specified."
    )


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        ("allocation failure: Requested node configuration is not available",
         "Requested node configuration is not available"),
        ("sbatch: error: Invalid generic resource (gres) specification",
         "Invalid generic resource (gres) specification"),
        ("allocation failure: Requested nodes are busy", ""),
        ("allocation failure: Required node not available (down, drained or reserved)", ""),
        ("allocation failure: Job violates accounting/QOS policy (job submit limit, user's size "
         "and/or time limits)", ""),
        ("allocation failure: Unable to contact slurm controller (connect failure)", ""),
    ],
)  # fmt: skip
def test_a_script_is_tried_and_only_what_never_passes_is_a_refusal(commands, said, refusal):
    commands.answer("sbatch", error=said, code=1)
    assert Slurm().refusal("#!/bin/sh\n") == refusal
    assert commands.calls == ["sbatch --test-only --array=0-0"]
    commands.answer("sbatch", error="sbatch: Job 7 to start at 2026-01-01T00:00:00 using 1 ...")
    assert Slurm().refusal("#!/bin/sh\n") == ""


@pytest.mark.parametrize("said", ["AssocGrpSubmitJobsLimit", "QOSMaxSubmitJobPerUserLimit"])
def test_too_many_jobs_are_no_refusal(commands, said):
    policy = "Job violates accounting/QOS policy (job submit limit, user's size)"
    error = f"sbatch: error: {said}\nsbatch: error: Batch job submission failed: {policy}\n"
    commands.answer("sbatch", error=error, code=1)
    with pytest.raises(TooMany, match=said):
        Slurm().submit(Path("/x/trial.1.sft.sbatch"))
    assert Slurm().refusal("#!/bin/sh\n", policy=True) == ""
    commands.answer("sbatch", error=f"allocation failure: {policy}", code=1)
    assert Slurm().refusal("#!/bin/sh\n", policy=True) == policy
    assert Slurm().refusal("#!/bin/sh\n") == ""


def test_the_nodes_of_a_cluster(commands):
    commands.answer("sinfo", "low*|8|64000|gpu:a100:4(S:0-1)|idle\nbig|64|1000000+|(null)|drained\n"
                             "low*|8|64000|(null)|mixed*\nlow*|8|64000|(null)|idle~\n")  # fmt: skip
    found = Slurm().nodes()
    assert found[0] == Node(partition="low", default=True, cpus=8, mem=64_000,
                            gres="gpu:a100:4(S:0-1)", up=True)  # fmt: skip
    assert [(node.partition, node.mem) for node in found[:2]] == [
        ("low", 64_000),
        ("big", 1_000_000),
    ]
    assert [node.up for node in found] == [True, False, False, True]


def test_a_change_that_will_never_be_made_is_a_refusal(commands):
    said = "12_0-1: Requested partition configuration not available now\n"
    commands.answer("scontrol", error=said, code=1)
    with pytest.raises(Refused, match="partition configuration not available now"):
        Slurm().depend(12, [0, 1], "")
    commands.answer("scontrol", error="Unable to contact slurm controller\n", code=1)
    with pytest.raises(StageFailed, match="Unable to contact"):
        Slurm().depend(12, [0, 1], "")


def test_a_command_that_fails_without_a_word_is_named_by_its_exit_code(commands):
    commands.answer("sbatch", code=3)
    with pytest.raises(UserError, match="exit code 3"):
        Slurm().submit(Path("x.sbatch"))


def test_variables_of_sbatch_do_not_beat_what_a_script_says(commands, monkeypatch):
    """SLURM lets SBATCH_PARTITION beat `#SBATCH --partition`; flags and cluster.yaml must win."""
    names = ("PARTITION", "GRES", "TIMELIMIT", "QOS", "ACCOUNT", "CONSTRAINT", "MEM_PER_NODE",
             "CLUSTERS")  # fmt: skip
    for name in names:
        monkeypatch.setenv(f"SBATCH_{name}", "secondhand")
    monkeypatch.setenv("SBATCH_RESERVATION", "kept")
    monkeypatch.setenv("HF_TOKEN", "inherited")
    commands.answer("sbatch", "1\n")
    Slurm().submit(Path("x.sbatch"))
    assert not [line for line in commands.environment if "secondhand" in line]
    assert {"SBATCH_RESERVATION=kept", "HF_TOKEN=inherited"} <= set(commands.environment)


def test_a_submission_does_not_wait_for_the_end_of_its_jobs(commands, monkeypatch):
    """SBATCH_WAIT makes sbatch stay until a job has ended, and a held one never does."""
    monkeypatch.setenv("SBATCH_WAIT", "1")
    commands.answer("sbatch", "1\n")
    Slurm().submit(Path("x.sbatch"))
    assert "SBATCH_WAIT=1" not in commands.environment


def test_without_sbatch_a_submission_says_what_to_do(commands):
    with pytest.raises(UserError) as error:
        Slurm().submit(Path("x.sbatch"))
    assert str(error.value) == (
        "there is no sbatch on this machine; submit on a node of the cluster, or run here with "
        "--launcher local."
    )
    assert not Slurm().answers()


def test_a_cluster_answers_where_sinfo_does(commands):
    commands.answer("sbatch")
    assert not Slurm().answers()
    commands.answer("sinfo", "gpu\n")
    assert Slurm().answers()
    commands.answer("sinfo", error="Unable to contact slurm controller", code=1)
    assert not Slurm().answers()


def test_a_command_that_hangs_is_given_up(commands, monkeypatch):
    monkeypatch.setattr(slurm, "SECONDS", 0.2)
    (commands.folder / "scontrol").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (commands.folder / "scontrol").chmod(0o755)
    with pytest.raises(StageFailed, match="scontrol did not answer within"):
        Slurm()._run("scontrol", seconds=0.2)


def test_what_tasks_wait_for_is_set_and_lifted(commands):
    commands.answer("scontrol")
    Slurm().depend(12, [0, 1, 4], "afterok:11_2:11_3")
    Slurm().depend(12, [7], "")
    assert commands.calls == [
        "scontrol update JobId=12_[0-1,4] Dependency=afterok:11_2:11_3",
        "scontrol update JobId=12_7 Dependency=",
    ]


def test_a_change_that_slurm_refuses_fails(commands):
    commands.answer("scontrol", error="12_7: Job is no longer pending execution\n", code=1)
    with pytest.raises(StageFailed, match=r"12_7: Job is no longer pending execution\."):
        Slurm().depend(12, [7], "afterok:11_2")


def test_arrays_are_released_together_and_nothing_is_asked_of_none(commands):
    commands.answer("scontrol")
    Slurm().release([12, 13])
    Slurm().release([])
    assert commands.calls == ["scontrol release 12,13"]


def test_releasing_an_array_of_which_a_task_has_ended_is_no_error(commands):
    """SLURM releases the others and exits with 1, in these words."""
    commands.answer("scontrol", error="12_0,2-4: No error\n12_1,5-7: Job has already finished\n",
                    code=1)  # fmt: skip
    Slurm().release([12])


def test_a_release_that_slurm_forbids_fails(commands):
    said = "Access/permission denied for job 12\nslurm_suspend error: Access/permission denied\n"
    commands.answer("scontrol", error=said, code=1)
    with pytest.raises(Refused, match="Access/permission denied"):
        Slurm().release([12])


def test_many_jobs_are_cancelled_in_a_few_calls(commands):
    commands.answer("scancel")
    made = Slurm()
    made.cancel([f"1_{index}" for index in range(1001)])
    assert made.calls == ["scancel"] * 3
    assert commands.calls[0].startswith("scancel --quiet 1_0 1_1 ")
    assert commands.calls[2] == "scancel --quiet 1_1000"


def test_a_job_that_has_ended_may_be_cancelled(commands):
    commands.answer("scancel", error="scancel: error: Kill job error on job id 1_0", code=1)
    Slurm().cancel(["1_0"])


def test_the_state_of_a_job_is_empty_where_it_is_not_known(commands):
    commands.answer("squeue", "RUNNING\n")
    assert Slurm().state("17") == "RUNNING"
    commands.answer("squeue", error="slurm_load_jobs error: Invalid job id specified", code=1)
    assert Slurm().state("17") == ""
    commands.answer("squeue", "")
    assert Slurm().state("17") == ""


def test_how_tasks_ended_comes_from_the_accounting_where_there_is_one(commands):
    assert Slurm().ended(["1_0"]) == {}
    commands.answer("sacct", "1_0|CANCELLED by 0\n1_1|OUT_OF_MEMORY\n1_2|\n1_[4-5]|TIMEOUT\n")
    asked = ["1_0", "1_1", "1_2", "1_5", "2_0"]
    assert Slurm().ended(asked) == {"1_0": "CANCELLED", "1_1": "OUT_OF_MEMORY", "1_5": "TIMEOUT"}
    assert commands.calls == ["sacct -a -n -P -X -j 1,2 -o JobID,State"]
    assert Slurm().ended([]) == {}
    commands.answer("sacct", error="Slurm accounting storage is disabled", code=1)
    assert Slurm().ended(["1_0"]) == {}


@pytest.mark.parametrize(
    ("text", "size"),
    [("MaxArraySize            = 101\nMaxJobCount = 7\n", 101), ("MaxJobCount = 7\n", 1001)],
)
def test_the_size_of_an_array_comes_from_the_cluster(commands, text, size):
    commands.answer("scontrol", text)
    assert Slurm().max_array_size() == size


def test_hosts_are_named_one_by_one(commands):
    commands.answer("scontrol", "n1\nn2\n")
    assert Slurm().hosts("n[1-2]") == ["n1", "n2"]
    commands.answer("scontrol", error="Invalid hostlist: n[1-", code=1)
    with pytest.raises(StageFailed, match=r"SLURM cannot list the hosts of 'n\[1-': Invalid"):
        Slurm().hosts("n[1-")


@pytest.mark.parametrize(
    ("text", "address"),
    [("NodeName=n1 Arch=x86_64\n   NodeAddr=10.0.0.7 NodeHostName=n1\n", "10.0.0.7"),
     ("Node n1 not found\n", "n1")],
)  # fmt: skip
def test_a_node_is_reached_at_its_address(commands, text, address):
    commands.answer("scontrol", text)
    assert Slurm().address("n1") == address


def test_nothing_is_read_from_the_terminal(commands):
    (commands.folder / "scontrol").write_text('#!/bin/sh\nread line && echo "read $line"\nexit 0\n')
    (commands.folder / "scontrol").chmod(0o755)
    done = Slurm()._run("scontrol")
    assert (done.returncode, done.stdout) == (0, "")
    assert os.environ["PATH"] == str(commands.folder)

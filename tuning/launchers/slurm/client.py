"""The only caller of sbatch, squeue, scontrol, scancel, sinfo and sacct.

Returns plain values and knows nothing of stages. Tasks of arrays are written `12_3`.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuning.launchers.slurm.script import COMMENT
from tuning.runs.errors import StageFailed, UserError

WAITS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
RUNS = ("RUNNING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")
LEAVES = ("COMPLETING",)
OURS = (
    "ACCOUNT",
    "PARTITION",
    "QOS",
    "GRES",
    "CONSTRAINT",
    "MEM_PER_NODE",
    "TIMELIMIT",
    "JOB_NAME",
    "ARRAY_INX",
    "OUTPUT",
    "ERROR",
    "WAIT",
    "OPEN_MODE",
    "SIGNAL",
    "REQUEUE",
    "NO_REQUEUE",
    "CLUSTERS",
)
"""Options that our scripts set; sbatch's variables SBATCH_* of these names would override them."""
FILTERS = ("SQUEUE_", "SACCT_", "SINFO_", "SLURM_CLUSTERS")
"""Variables that filter the output of squeue, sacct and sinfo: with them, jobs would be overlooked
and submitted twice.
"""
UNSURE = "timed out|unable to contact|connection|communication|try again|temporarily|zero bytes"
"""Errors of sbatch after which SLURM may have accepted the job nevertheless."""
ACCOUNTED = ("JobID", "State", "ElapsedRaw", "CPUTimeRAW", "TotalCPU", "AllocTRES", "MaxRSS")
"""Columns of sacct."""
_WIDTH = len(ACCOUNTED)
TOO_MANY = "(?:Max|Grp)SubmitJob"
"""In errors of sbatch: SLURM takes no more jobs of this user, account or QOS now."""
PASSING = f"{UNSURE}|no longer pending|already (?:finished|completing)|invalid job id|disabled"
"""Errors of scontrol that say nothing against the job: asked again, SLURM may answer otherwise."""
NOT_NOW = "nodes are busy|node not available|partition configuration not available now|held state"
"""Errors of sbatch --test-only with which sbatch itself accepts a job, or says more."""
HELD_BY_SLURM = ("launch failed requeued held", "JobHoldMaxRequeue", "job requeued in held state")
"""Reasons of jobs that SLURM holds after their start failed; their owner may release them."""
UNAVAILABLE = ("down", "drain", "fail", "maint", "reserved", "unknown", "inval", "reboot")
"""How the states of nodes begin that take no jobs at present."""
SECONDS = 60.0
"""The timeout of a command."""
TEST_SECONDS = 20.0
"""That of a test, for which SLURM plans when the job would start; it is left out if it is slow."""


class Refused(UserError):
    """What SLURM will not do, however often it is asked."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node in one of its partitions."""

    partition: str
    default: bool
    """Whether this is the partition of jobs that name none."""
    cpus: int
    mem: int
    """In megabytes."""
    gres: str
    """As sinfo writes them: `gpu:a100:4(S:0-1)`."""
    up: bool
    """Whether it takes jobs at present."""


class TooMany(UserError):
    """SLURM takes fewer jobs at once than were submitted."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A task of one of our arrays as SLURM knows it."""

    id: str
    state: str
    """PENDING, RUNNING, COMPLETED ..., as squeue writes it."""
    reason: str = ""
    token: str = ""
    """The token of its array."""
    elapsed: str = ""
    node: str = ""
    user: str = ""

    @property
    def number(self) -> int:
        """The array's job id."""
        return int(self.id.partition("_")[0])

    @property
    def index(self) -> int:
        """Which task of the array it is."""
        return int(self.id.partition("_")[2])

    @property
    def live(self) -> bool:
        """Whether it is pending, running or completing."""
        return self.state in WAITS + RUNS + LEAVES and not self.doomed

    @property
    def doomed(self) -> bool:
        """Whether its dependency can never be satisfied."""
        return self.state in WAITS and self.reason == "DependencyNeverSatisfied"

    @property
    def held(self) -> bool:
        """Whether it is held until its owner releases it."""
        return self.state in WAITS and self.reason == "JobHeldUser"

    @property
    def held_by_slurm(self) -> bool:
        """Whether SLURM holds it because its start failed."""
        return self.state in WAITS and self.reason in HELD_BY_SLURM


class Slurm:
    """The cluster that this machine belongs to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """The names of the commands that were run."""

    def answers(self) -> bool:
        """Whether there is a cluster that accepts jobs."""
        if shutil.which("sbatch") is None:
            return False
        try:
            return self._run("sinfo", "-h", "-o", "%P", seconds=10).returncode == 0
        except (StageFailed, UserError):
            return False

    def submit(self, script: Path) -> int:
        """Submit a script; its job id. Refused if SLURM rejects it, TooMany for a limit of jobs,
        StageFailed if it is unknown whether SLURM accepted it.
        """
        done = self._run("sbatch", "--parsable", str(script))
        if done.returncode != 0:
            if re.search(UNSURE, done.stderr, re.IGNORECASE):
                raise StageFailed(f"sbatch {script.name}: {_errors_of(done)}; submit again.")
            if re.search(TOO_MANY, done.stderr):
                raise TooMany(
                    f"SLURM takes no more jobs of yours now ({_errors_of(done)}); the same command "
                    "submits the rest when some have ended."
                )
            raise Refused(f"SLURM refuses {script.name}: {_errors_of(done)}.")
        return int(done.stdout.strip().split(";")[0])

    def refusal(self, script: str, *, policy: bool = False) -> str:
        """Why SLURM could never run a task of a script, in SLURM's words; "" if it could, or if it
        does not say. `policy`: also why a policy is against it, other than too many jobs.
        """
        try:
            done = self._run(
                "sbatch", "--test-only", "--array=0-0", script=script, seconds=TEST_SECONDS
            )
        except StageFailed:
            return ""
        passing = f"{NOT_NOW}|{UNSURE}|{TOO_MANY if policy else 'policy'}"
        passes = re.search(passing, done.stderr, re.IGNORECASE)
        return "" if done.returncode == 0 or passes else _errors_of(done)

    def nodes(self) -> list[Node]:
        """Every node, once for each of its partitions."""
        done = self._run("sinfo", "-h", "-N", "-o", "%P|%c|%m|%G|%T")
        lines = (line.split("|") for line in done.stdout.splitlines() if line.count("|") == 4)
        return [
            Node(
                partition=partition.rstrip("*"),
                default=partition.endswith("*"),
                cpus=int(re.sub(r"\D", "", cpus) or 0),
                mem=int(re.sub(r"\D", "", mem) or 0),
                gres=gres,
                up=not state.startswith(UNAVAILABLE) and not state.endswith("*"),
            )
            for partition, cpus, mem, gres, state in lines
        ]

    def depend(self, number: int, indices: Sequence[int], condition: str) -> None:
        """Set the dependency of tasks of an array (`afterok:11_2`); "" removes it."""
        self._change("update", f"JobId={tasks(number, indices)}", f"Dependency={condition}")

    def release(self, jobs: Iterable[int | str]) -> None:
        """Release held arrays or tasks; they start when their dependencies allow."""
        listed = ",".join(map(str, jobs))
        if listed:
            self._change("release", listed, harmless="No error|Job has already finished")

    def requeue(self, job: str) -> None:
        """Requeue a running job; SLURM ends it at once."""
        self._change("requeue", job)

    def cancel(self, jobs: Sequence[str], *, waiting: bool = False) -> None:
        """Cancel jobs, or only those that still wait; it is no error if they have ended."""
        state = ["--state=PENDING"] if waiting else []
        for start in range(0, len(jobs), 500):
            self._run("scancel", "--quiet", *state, *jobs[start : start + 500])

    def queue(self, users: Iterable[int] = ()) -> list[Job]:
        """The tasks of ours, and of these other users, that SLURM still lists, for some minutes
        also those that have ended.
        """
        everybody = sorted({os.getuid(), *filter(_exists, users)})
        whose = ["-u", ",".join(map(str, everybody))] if len(everybody) > 1 else ["--me"]
        done = self._run("squeue", *whose, "-h", "-r", "-t", "all", "-o", "%i|%T|%r|%k|%M|%N|%u")
        if done.returncode != 0:
            raise StageFailed(f"squeue does not answer: {_errors_of(done)}.")
        return [job for line in done.stdout.splitlines() if (job := _job(line)) is not None]

    def count(self) -> int:
        """How many jobs of this user wait or run, whatever they are."""
        done = self._run("squeue", "--me", "-h", "-r", "-o", "%i")
        if done.returncode != 0:
            raise StageFailed(f"squeue does not answer: {_errors_of(done)}.")
        return len(done.stdout.split())

    def state(self, job: str) -> str:
        """The state of one job as squeue writes it; "" for an unknown job."""
        done = self._run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            raise StageFailed(f"squeue does not answer: {_errors_of(done)}.")
        return (done.stdout.split() or [""])[0]

    def preempted(self, job: str) -> bool:
        """Whether a job is being cancelled because it was preempted. SLURM records no time of
        preemption for jobs that it requeues itself.
        """
        done = self._run("scontrol", "show", "job", job)
        return re.search(r"PreemptTime=\d", done.stdout) is not None

    def ended(self, jobs: Sequence[str]) -> dict[str, str]:
        """{task: state} of ended tasks from the accounting database; {} without one."""
        if not jobs or shutil.which("sacct") is None:
            return {}
        numbers = sorted({job.partition("_")[0] for job in jobs})
        done = self._run(
            "sacct", "-a", "-n", "-P", "-X", "-j", ",".join(numbers), "-o", "JobID,State"
        )
        if done.returncode != 0:
            return {}
        lines = (line.split("|") for line in done.stdout.splitlines() if "|" in line)
        found = {task: state.split()[0] for job, state in lines if state for task in _each(job)}
        whole = {job: job.partition("_")[0] for job in jobs}  # an array that never started
        return {
            job: found.get(job) or found[whole[job]]
            for job in jobs
            if job in found or whole[job] in found
        }

    def accounts(self, numbers: Sequence[int]) -> list[dict[str, str]]:
        """What the accounting database has of every start of jobs and of its steps, by the names of
        ACCOUNTED; [] without one.
        """
        if not numbers or shutil.which("sacct") is None:
            return []
        listed = ",".join(map(str, numbers))
        done = self._run("sacct", "-n", "-P", "-D", "-j", listed, "-o", ",".join(ACCOUNTED))
        if done.returncode != 0:
            return []
        lines = (line.split("|") for line in done.stdout.splitlines())
        return [dict(zip(ACCOUNTED, line, strict=True)) for line in lines if len(line) == _WIDTH]

    def pause(self, seconds: float) -> None:
        """Let time pass before SLURM is asked again."""
        time.sleep(seconds)

    def max_array_size(self) -> int:
        """How many tasks one array may have."""
        done = self._run("scontrol", "show", "config")
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
        return int(found[1]) if found else 1001

    def hosts(self, nodes: str) -> list[str]:
        """The host names in `n[1-2]`."""
        done = self._run("scontrol", "show", "hostnames", nodes)
        if done.returncode != 0 or not done.stdout.split():
            raise StageFailed(f"SLURM cannot list the hosts of '{nodes}': {_errors_of(done)}.")
        return done.stdout.split()

    def address(self, host: str) -> str:
        """The address of a node: its NodeAddr, which may differ from its name."""
        done = self._run("scontrol", "show", "node", host)
        found = re.search(r"NodeAddr=(\S+)", done.stdout)
        return found[1] if found else host

    def _change(self, *words: str, harmless: str = "$^") -> None:
        """Change jobs; Refused if SLURM will never do that, StageFailed if it may later."""
        done = self._run("scontrol", *words)
        errors = [line for line in done.stderr.splitlines() if not re.search(harmless, line)]
        if done.returncode != 0 and (errors or not done.stderr):
            said = f"scontrol {' '.join(words)}: {_errors_of(done)}."
            passing = not errors or re.search(PASSING, done.stderr, re.IGNORECASE)
            raise StageFailed(said) if passing else Refused(said)

    def _run(
        self, *command: str, seconds: float = SECONDS, script: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, with `script` as its standard input."""
        self.calls.append(command[0])
        try:
            return subprocess.run(
                command,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
                input=script,
                env=_environment(),
            )
        except FileNotFoundError:
            raise UserError(
                f"there is no {command[0]} on this machine; submit on a node of the cluster, or "
                "run here with --launcher local."
            ) from None
        except subprocess.TimeoutExpired:
            raise StageFailed(f"{command[0]} did not answer within {seconds:g} s.") from None


def _environment() -> dict[str, str]:
    """The environment without the variables that would change our options or SLURM's output."""
    left_out = {f"SBATCH_{name}" for name in OURS}
    return {
        name: value
        for name, value in os.environ.items()
        if name not in left_out and not name.startswith(FILTERS)
    }


def _exists(user: int) -> bool:
    """Whether this machine knows a user; squeue refuses to look for others."""
    try:
        return bool(pwd.getpwuid(user))
    except KeyError:
        return False


def tasks(number: int, indices: Sequence[int]) -> str:
    """`12_3`, or `12_[0,3-5]` for several tasks of an array."""
    if len(indices) == 1:
        return f"{number}_{indices[0]}"
    parts: list[str] = []
    for index in sorted(indices):
        first, _, last = parts[-1].partition("-") if parts else ("", "", "")
        if parts and int(last or first) == index - 1:
            parts[-1] = f"{first}-{index}"
        else:
            parts.append(str(index))
    return f"{number}_[{','.join(parts)}]"


def _each(job: str) -> list[str]:
    """The tasks of `12_3` or `12_[0,2-4%8]`, as sacct lists those that never started."""
    number, _, listed = job.partition("_[")
    if not listed:
        return [job]
    ranges = [part.partition("-") for part in listed.rstrip("]").partition("%")[0].split(",")]
    indices = [i for first, _, last in ranges for i in range(int(first), int(last or first) + 1)]
    return [f"{number}_{index}" for index in indices]


def _job(line: str) -> Job | None:
    if line.count("|") < 6:
        return None
    job, state, reason, comment, elapsed, node, user = line.split("|", 6)
    if not comment.startswith(COMMENT):
        return None
    token = comment.removeprefix(COMMENT)
    job = job if "_" in job else f"{job}_0"  # an array of one that never started
    return Job(
        id=job, state=state, reason=reason, token=token, elapsed=elapsed, node=node, user=user
    )


def _errors_of(done: subprocess.CompletedProcess[str]) -> str:
    """The error output of a failed command, in one line."""
    lines = (done.stderr or done.stdout).splitlines()
    said = [
        line.partition("error: ")[2] or line.partition("allocation failure: ")[2] or line
        for line in lines
        if line.strip()
    ]
    return "; ".join(dict.fromkeys(said)) or f"exit code {done.returncode}"

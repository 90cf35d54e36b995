"""A throwaway SLURM of two nodes on this machine: real daemons on loopback, in a folder of its own.

Needs Debian's slurm-wlm and munge, and root. Each node has two CPUs and two fake GPUs (character
devices), and two partitions share them: `low`, whose jobs are requeued when `high` wants their
place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.slurm import accounting

NEEDED = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munged")

SLURM_CONF = """
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=2000
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
Prolog={folder}/prolog
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.txt
{accounting}
SchedulerParameters=defer_batch=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize={largest_array}
MinJobAge={remembers}
KillWait=30
InactiveLimit=0
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=15
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] \\
    CPUs=2 RealMemory=4000 Gres=gpu:2
PartitionName=low Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=2
"""


def missing() -> str | None:
    """Why no cluster can be had here, or None."""
    if os.geteuid() != 0:
        return "starting a SLURM cluster needs root"
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)} (slurm-wlm, munge)" if lacking else None


def free_ports(count: int) -> list[int]:
    """Neighbouring ports that nobody uses; other ones in each process of pytest-xdist."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for first in range(17000 + 1000 * worker, 18000 + 1000 * worker, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return list(range(first, first + count))
    raise OSError("no free ports")


class Cluster:
    """The running daemons, and how to talk to them."""

    def __init__(
        self,
        folder: Path,
        *,
        largest_array: int = 101,
        remembers: int = 600,
        accounted: bool = False,
        limited: bool = False,
        private: bool = False,
    ) -> None:
        """`remembers`: seconds for which ended jobs are known; `accounted`: with slurmdbd, and
        `limited`: its limits and those of QOS hold; `private`: users see their own jobs only.
        """
        self.folder = folder
        self.largest_array = largest_array
        self.remembers = remembers
        self.accounted = accounted
        self.limited = limited
        self.private = private
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start munged, the controller and both nodes; wait until the nodes are idle."""
        ports = free_ports(5)
        self._write_configuration(ports)
        self._start_munge()
        if self.accounted:
            accounting.start(self.folder, (ports[3], ports[4]), self._start)
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.idle() == 2:
                threading.Thread(target=self._hasten, daemon=True).start()
                return
            time.sleep(0.2)
        raise RuntimeError(f"the nodes did not come up: {self.run('sinfo', check=False)}")

    def idle(self) -> int:
        """How many nodes have nothing to do."""
        found = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%t", check=False).split()
        return found.count("idle")

    def start_node(self, node: str) -> None:
        """Start (or start again) the daemon of a node."""
        self._start(node, "slurmd", "-D", "-N", node)

    @contextlib.contextmanager
    def failing_starts(self) -> Iterator[None]:
        """A block in which no job can be started: SLURM holds it and drains its node."""
        fails = self.folder / "prolog.fails"
        fails.touch()
        try:
            yield
        finally:
            fails.unlink()
            drained = self.run("sinfo", "-h", "-N", "-p", "low", "-t", "drain", "-o", "%N").split()
            for node in drained:
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def kill_node(self, node: str, job: str) -> None:
        """What a power failure does: the daemon of a node, and all of a job there, gone at once."""
        self.daemons.pop(node).kill()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                around = (process / "environ").read_bytes().split(b"\0")
                name = (process / "cmdline").read_bytes()
                ours = f"SLURM_CONF={self.folder}/slurm.conf".encode() in around
                of_job = f"SLURM_JOB_ID={job}".encode() in around or f"[{job}.".encode() in name
                if ours and of_job:
                    os.kill(int(process.name), signal.SIGKILL)

    def _hasten(self) -> None:
        """SLURM lets a requeued job wait for two minutes; its owner may say that it starts sooner.

        Not at once: a launch must be later than the end of the last one by more than a second.
        """
        since: dict[str, float] = {}
        while not self._stopping.wait(0.5):
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                listed = self.run("squeue", "-h", "-t", "PD", "-o", "%A %r").splitlines()
                waiting = [line.split()[0] for line in listed if line.endswith(" BeginTime")]
                since = {job: since.get(job, time.monotonic()) for job in waiting}
                for job in (job for job in waiting if time.monotonic() - since[job] > 2.5):
                    self.run("scontrol", "update", f"JobId={job}", "StartTime=now")

    def stop(self) -> None:
        """Cancel what runs and stop every daemon."""
        self._stopping.set()
        self.run("scancel", "-u", "root", check=False)
        for name in ("n1", "n2", "slurmctld", "slurmdbd", "mariadbd", "munged"):
            process = self.daemons.pop(name, None)
            if process is not None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
                process.kill()

    def run(self, *command: str, check: bool = True) -> str:
        """The output of a SLURM command."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._start(
            "munged", "munged", "--foreground", "--force",
            f"--key-file={key}", f"--socket={self.folder}/munge.socket",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed",
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not (self.folder / "munge.socket").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _write_configuration(self, ports: list[int]) -> None:
        self.folder.chmod(0o755)
        for name in ("state", "spool.n1", "spool.n2"):
            (self.folder / name).mkdir(exist_ok=True)
        for number in range(2):
            device = self.folder / f"gpu{number}"
            os.mknod(device, 0o20666, os.makedev(1, 3))
        storage = "AccountingStorageType=accounting_storage/none"
        if self.accounted:
            storage = (
                "AccountingStorageType=accounting_storage/slurmdbd\n"
                f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={ports[3]}\n"
                f"AccountingStoragePass={self.folder}/munge.socket\n"
                "AccountingStorageTRES=gres/gpu\nAccountingStorageEnforce=limits"
            )
        if self.limited:
            storage += "\nAccountingStorageEnforce=associations,limits,qos"
        if self.private:
            storage += "\nPrivateData=jobs"
        prolog = self.folder / "prolog"
        prolog.write_text(f"#!/bin/sh\n[ ! -e {self.folder}/prolog.fails ]\n")
        prolog.chmod(0o755)
        text = SLURM_CONF.format(
            host=socket.gethostname(), folder=self.folder, ctld_port=ports[0], accounting=storage,
            node_ports=f"{ports[1]}-{ports[2]}", largest_array=self.largest_array,
            remembers=self.remembers,
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")


@contextlib.contextmanager
def running(folder: Path, **options: Any) -> Iterator[Cluster]:
    """A cluster for a block."""
    cluster = Cluster(folder, **options)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()

"""Starts the processes of a stage that trains on several devices or nodes, by way of torchrun.

    python -m tuning.launchers.torchrun tuning/run_pretrain.py --model tiny

Once a node. Where it stands among them comes from NUM_NODES, NODE_RANK, MASTER_ADDR and MASTER_PORT
if they are set, and from SLURM otherwise; TUNING_PROCESSES is the number of processes a node.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuning.launchers.slurm.client import Slurm
from tuning.runs.errors import UserError

FIRST_PORT = 20000
PORTS = 10000


@dataclass(frozen=True, kw_only=True)
class Node:
    """One of the nodes that train together."""

    nodes: int
    rank: int
    address: str
    port: int
    processes: int

    @property
    def joined(self) -> bool:
        """Whether there is more than one process."""
        return self.nodes * self.processes > 1


def this_node(environ: Mapping[str, str] = os.environ) -> Node:
    """Where this process stands; UserError where a variable is no number."""
    nodes = _number(environ, "NUM_NODES", "SLURM_NNODES", 1)
    address = environ.get("MASTER_ADDR") or "127.0.0.1"
    if not environ.get("MASTER_ADDR") and nodes > 1:
        if "SLURM_JOB_NODELIST" not in environ:
            raise UserError("NUM_NODES is above 1: MASTER_ADDR must name the first node.")
        slurm = Slurm()
        address = slurm.address(slurm.hosts(environ["SLURM_JOB_NODELIST"])[0])
    job = _number(environ, "SLURM_JOB_ID", "", 0)
    return Node(
        nodes=nodes,
        rank=_number(environ, "NODE_RANK", "SLURM_NODEID", 0),
        address=address,
        port=_number(environ, "MASTER_PORT", "", FIRST_PORT + job % PORTS),
        processes=_number(environ, "TUNING_PROCESSES", "", 1),
    )


def _number(environ: Mapping[str, str], by_hand: str, by_slurm: str, default: int) -> int:
    name = by_hand if environ.get(by_hand) else by_slurm
    value = environ.get(name) or str(default)
    if not value.isdigit():
        raise UserError(f"{name} is '{value}'; it must be a whole number.")
    return int(value)


def command(node: Node, stage: Sequence[str]) -> list[str]:
    """The words that start the processes of this node."""
    return [
        sys.executable, "-P", "-m", "torch.distributed.run", f"--nnodes={node.nodes}",
        f"--node_rank={node.rank}", f"--nproc_per_node={node.processes}",
        f"--master_addr={node.address}", f"--master_port={node.port}", *stage,
    ]  # fmt: skip


def on_all_nodes(node: Node, stage: Sequence[str]) -> list[str]:
    """The words that, said on the first node of a SLURM job, start a stage on all of them."""
    return [
        "srun", f"--nodes={node.nodes}", f"--ntasks={node.nodes}", "--ntasks-per-node=1",
        f"--cpus-per-task={os.environ.get('SLURM_CPUS_PER_TASK', '1')}", "--kill-on-bad-exit=1",
        "--export=ALL", sys.executable, "-P", "-m", "tuning.launchers.torchrun", *stage,
    ]  # fmt: skip


def main() -> int:
    """Become torchrun."""
    words = command(this_node(), sys.argv[1:])
    os.execv(words[0], words)


if __name__ == "__main__":
    from tuning.entry import run

    run(main)

"""SLURM's accounting for the throwaway cluster: slurmdbd over a MariaDB in the cluster's folder."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb", "sacct")

SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""


def missing() -> str | None:
    """Why there can be no accounting here, or None."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return f"not installed: {', '.join(lacking)} (slurmdbd, mariadb-server)" if lacking else None


def start(
    folder: Path, ports: tuple[int, int], run: Callable[..., None], seconds: float = 60
) -> None:
    """Start the database and slurmdbd; `run(name, *command)` starts a daemon."""
    port, database_port = ports
    data = folder / "mariadb"
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root",
         "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True, capture_output=True,
    )  # fmt: skip
    socket = folder / "mariadb.socket"
    run(
        "mariadbd", "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket}",
        f"--port={database_port}", "--bind-address=127.0.0.1", "--user=root",
        f"--pid-file={folder}/mariadb.pid", "--innodb-buffer-pool-size=64M",
    )  # fmt: skip
    deadline = time.monotonic() + seconds
    statement = (
        "CREATE USER 'slurm'@'%' IDENTIFIED BY 'slurm'; GRANT ALL ON slurm.* TO 'slurm'@'%'; "
        "CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'slurm'; "
        "GRANT ALL ON slurm.* TO 'slurm'@'localhost';"
    )
    client = ["mariadb", "--no-defaults", f"--socket={socket}", "-uroot", "-e", statement]
    while subprocess.run(client, capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise RuntimeError("the database did not come up")
        time.sleep(0.2)
    conf = folder / "slurmdbd.conf"
    conf.write_text(SLURMDBD_CONF.format(folder=folder, port=port, database_port=database_port))
    conf.chmod(0o600)
    run("slurmdbd", "slurmdbd", "-D")
    while not (folder / "slurmdbd.log").exists() or "started" not in (
        folder / "slurmdbd.log"
    ).read_text():  # fmt: skip
        if time.monotonic() > deadline:
            raise RuntimeError("slurmdbd did not come up")
        time.sleep(0.2)

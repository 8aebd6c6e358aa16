"""A real Slurm of one node on the loopback device, for tests and for trying out. Needs slurm-wlm, munge, and root.

usage: python tests/cluster/local_slurm.py FOLDER COMMAND ...      runs the command with that Slurm, then stops it
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
REQUEUE_DELAY_S = 5  # Slurm's own is 120

CONFIG = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={delay}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=1
MpiDefault=none
KillWait=5
MinJobAge=3600
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
"""


def why_not() -> str | None:
    """Return why no Slurm can be started here, or None."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=SEARCHED) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    return None if os.geteuid() == 0 else "only root can start slurmd"


@contextlib.contextmanager
def local_slurm(folder: Path, cpus: int | None = None) -> Iterator[dict[str, str]]:
    """Start a Slurm whose files are in `folder`; give the environment in which its commands find it; stop it.

    Args:
        folder: new or empty, its path short (it holds a socket).
        cpus: of the node; None for as many as there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    folder.chmod(0o755)
    config = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    config.write_text(
        CONFIG.format(
            host=host, folder=folder, ports=_free_ports(2), cpus=cpus or os.cpu_count(), delay=REQUEUE_DELAY_S
        )
    )
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": SEARCHED}
    munge = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    munge |= {"log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}
    try:
        _start(["munged", "--force", *(f"--{option}={path}" for option, path in munge.items())], environment)
        _start(["slurmctld", "-c"], environment)
        _start(["slurmd"], environment)
        _until_idle(environment)
        yield environment
    finally:
        if (folder / "slurmctld.pid").is_file():
            _end_jobs(environment)
        for name in ("slurmd", "slurmctld", "munged"):
            _end(folder / f"{name}.pid")


def _start(command: list[str], environment: dict[str, str]) -> None:
    started = subprocess.run(command, env=environment, capture_output=True, text=True)
    if started.returncode:
        raise RuntimeError(f"{' '.join(command)}: {started.stderr}")


def _until_idle(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        asked = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
        if asked.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise RuntimeError(f"the node does not come up: {asked.stdout} {asked.stderr}")


def _end_jobs(environment: dict[str, str]) -> None:
    subprocess.run(["scancel", "--user", "root"], env=environment, capture_output=True)
    deadline = time.monotonic() + 60  # a job has KillWait to end by itself
    while time.monotonic() < deadline:
        if not subprocess.run(["squeue", "-h"], env=environment, capture_output=True, text=True).stdout:
            return
        time.sleep(0.5)


def _end(pid_file: Path) -> None:
    if not pid_file.is_file():
        return
    process = int(pid_file.read_text())
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 15)
        for _ in range(100):
            os.kill(process, 0)
            time.sleep(0.1)
        os.kill(process, 9)


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


if __name__ == "__main__":
    if reason := why_not():
        sys.exit(f"error: {reason}")
    with local_slurm(Path(sys.argv[1])) as environment:
        sys.exit(subprocess.run(sys.argv[2:], env=environment).returncode)

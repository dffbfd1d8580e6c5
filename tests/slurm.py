"""A SLURM of this machine alone, whose controller takes two of its daemons for two nodes of one core each."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.disturbing import wait_until

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
SwitchType=switch/none
TaskPlugin=task/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=1000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")


class Slurm:
    """A controller and two nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        values = {"host": socket.gethostname(), "user": os.environ.get("USER", "root"), "folder": folder}
        (folder / "slurm.conf").write_text(CONFIGURATION.format(ports=[_free_port() for _ in range(3)], **values))
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        files = [f"--{name}-file={folder}/munged.{name}" for name in ("pid", "log", "seed")]
        self("munged", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock", *files)
        self("slurmctld", "-c")
        for name in ("node1", "node2"):
            (folder / f"spool.{name}").mkdir()
            self("slurmd", "-N", name)
        wait_until(lambda: self("sinfo", "--noheader", "--format=%t %D").split() == ["idle", "2"])

    def __call__(self, *words: str, within: Path | None = None) -> str:
        """What a command of SLURM answers."""
        for _ in range(3 if words[0] in ("sinfo", "scontrol") else 1):  # a busy controller does not always answer
            done = subprocess.run(
                words, env=self.environment, cwd=within, capture_output=True, text=True, timeout=60, check=False
            )
            if not done.returncode:
                break
            time.sleep(1)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, FAILED, ..."""
        words = dict(word.split("=", 1) for word in self("scontrol", "show", "job", job).split() if "=" in word)
        return words["JobState"]

    def end(self) -> None:
        for path in self.folder.glob("*.pid"):
            with suppress(psutil.NoSuchProcess, ValueError):
                first = psutil.Process(int(path.read_text()))
                for one in (*first.children(recursive=True), first):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()


@contextmanager
def slurm() -> Iterator[Slurm]:
    """For the block; skips where SLURM is not installed, or may not be started."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian has daemons
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing or os.geteuid() != 0:
        lacking = ", ".join(missing) or "and the right to start its daemons"
        pytest.skip(f"takes SLURM ({lacking}): apt-get install slurm-wlm")
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        controller = Slurm(folder)
        try:
            yield controller
        finally:
            controller.end()
            shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

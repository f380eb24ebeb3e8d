"""SLURM on this machine for tests: one node that claims cores, memory and GPUs, kept to a folder and to loopback."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from in_children import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
PLACES = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])  # of daemons, not on everybody's PATH
START_SECONDS = 60
UNFINISHED = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED"}

# A job of queue "urgent" drives those of "gpu" out, which are queued again; they have GraceTime to write a checkpoint.
# cred_expire is how long a job that was queued again waits before it may start.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=15
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
ReturnToService=2
MinJobAge=86400
NodeName={host} NodeAddr=127.0.0.1 CPUs=32 RealMemory=256000 Gres=gpu:4 State=UNKNOWN
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=300
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def what_is_lacking() -> list[str]:
    """The programs of SLURM and munge that this machine does not have."""
    return [program for program in PROGRAMS if shutil.which(program, path=PLACES) is None]


class Slurm:
    """What users do with it, in a folder of theirs."""

    def __init__(self, folder: Path, home: Path, environment: dict[str, str]) -> None:
        self.home, self._daemons = home, folder
        self._environment = environment | {"SLURM_CONF": f"{folder}/slurm.conf"}

    def bash(self, script: str) -> str:
        """Run a script, and give what it prints."""
        command = ["bash", "-euc", script]
        done = subprocess.run(command, cwd=self.home, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, options: str) -> str:
        """The number of a job."""
        return self.bash(f"sbatch --parsable {options}").strip()

    def tasks(self, job: str) -> list[dict[str, str]]:
        """Of a job or of an array, what `scontrol` says of each."""
        lines = self.bash(f"scontrol show --oneliner job {job}").splitlines()
        return [dict(re.findall(r"(\w+)=(\S*)", line)) for line in lines if line.strip()]

    def wait(self, job: str, seconds: float = 1800) -> list[dict[str, str]]:
        """Until all its tasks have ended."""

        def ended() -> list[dict[str, str]]:
            tasks = self.tasks(job)
            return [] if UNFINISHED & {task["JobState"] for task in tasks} else tasks

        return self.wait_until(ended, f"job {job} ends", seconds)

    def wait_until(self, seen: object, what: str, seconds: float = 600) -> object:
        """What `seen()` gives, as soon as it is something."""
        until = time.monotonic() + seconds
        while not (found := seen()):
            assert time.monotonic() < until, f"{what}: not within {seconds} s\n{self.bash('squeue')}{self.logs()}"
            time.sleep(0.5)
        return found

    def logs(self) -> str:
        """Of all jobs, and the end of those of the daemons."""
        of_jobs = [f"--- {path.name}\n{path.read_text()}" for path in sorted(self.home.glob("*.log"))]
        ends = [path.read_text().splitlines()[-20:] for path in sorted(self._daemons.glob("*.log"))]
        return "\n".join([*of_jobs, *("\n".join(lines) for lines in ends)])


@contextmanager
def one_node(folder: Path, home: Path, environment: dict[str, str]) -> Iterator[Slurm]:
    """Munge and SLURM as daemons, until the end.

    Args:
        folder: for the daemons, new; its path must be short enough for a socket.
        home: where users are.
        environment: of the jobs.
    """
    host = socket.gethostname().split(".")[0]
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700, parents=True)
    key = folder / "munge/key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    values = {"folder": folder, "host": host, "user": getpass.getuser()}
    values |= {"controller_port": free_port(), "node_port": free_port()}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**values))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    for number in range(4):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu File={folder}/gpu[0-3]\n")
    files = {"key-file": "key", "socket": "socket", "log-file": "log", "seed-file": "seed", "pid-file": "pid"}
    munge = [f"--{option}={folder}/munge/{name}" for option, name in files.items()]
    slurm = Slurm(folder, home, environment)
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *munge],
            ["slurmctld", "-D", "-f", f"{folder}/slurm.conf"],
            ["slurmd", "-D", "-f", f"{folder}/slurm.conf", "-N", host],
        ):
            program = shutil.which(command[0], path=PLACES)
            with (folder / f"{command[0]}.out").open("w") as out:
                daemons.append(
                    subprocess.Popen([program, *command[1:]], env=slurm._environment, stdout=out, stderr=out)
                )
            if command[0] == "munged":
                slurm.wait_until((folder / "munge/socket").exists, "munge starts", START_SECONDS)
        slurm.wait_until(lambda: "idle" in _states(slurm), "the node is ready", START_SECONDS)
        yield slurm
    finally:
        if len(daemons) == 3:
            subprocess.run(["bash", "-c", "scancel --user $(id -u) --signal=KILL --full; scancel --user $(id -u)"],
                           env=slurm._environment, capture_output=True)  # fmt: skip
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()


def _states(slurm: Slurm) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, env=slurm._environment, capture_output=True, text=True).stdout

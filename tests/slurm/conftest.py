"""A real Slurm cluster of two nodes on this machine: munged, slurmctld and two slurmd with their own names and ports."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

HOSTS = Path("/etc/hosts")
NAMES = "127.0.0.1 node1 node2"
NODES = ("node1", "node2")
CONF = """\
ClusterName=kdbench
SlurmctldHost=localhost
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdTimeout=20
KillWait=5
MinJobAge=2
SchedulerParameters=sched_interval=2,sched_min_interval=0,batch_sched_delay=0
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=1000
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=1000
PartitionName=debug Nodes=node[1-2] Default=YES State=UP OverSubscribe=YES:4 MaxTime=INFINITE
"""


class Cluster:
    """The daemons of the cluster, and what a user does with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            ports = [each.getsockname()[1] for each in sockets]
        (folder / "slurm.conf").write_text(CONF.format(folder=folder, ports=ports))
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir()

    def start(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        # munged wants every folder above its files to be closed to others, unless it is forced
        own = [f"--{name}={self.folder}/munge.{name.split('-')[0]}" for name in ("key-file", "socket", "pid-file")]
        self._daemon(
            "munged", "--force", *own, f"--log-file={self.folder}/munged.log", f"--seed-file={self.folder}/seed"
        )
        self._daemon("slurmctld")
        for node in NODES:
            self.start_node(node)
        self.wait_for(
            lambda: self.ask("sinfo", "-h", "-N", "-o", "%T").split() == ["idle", "idle"], 60, "two idle nodes"
        )

    def start_node(self, node: str) -> None:
        self._daemon("slurmd", "-N", node)

    def stop(self) -> None:
        """End every daemon that was started here, and the steps of its jobs."""
        if self.pid("slurmctld"):
            self.ask("scancel", "--user=root", check=False)
            with contextlib.suppress(TimeoutError):
                self.wait_for(lambda: not self.ask("squeue", "-h", check=False).strip(), 20, "an empty queue")
        for node in NODES:
            self.kill_node(node)
        for name in ("slurmctld", "munge"):
            if pid := self.pid(name):
                _end(pid)

    def kill_node(self, node: str) -> None:
        """End a node as a power failure does: its daemon, the steps on it, and all that they started."""
        pids = [int(pid) for pid in self._steps(node)]
        if daemon := self.pid(f"slurmd-{node}"):
            pids.insert(0, daemon)
        for pid in pids:
            for each in [pid, *_below(pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
        (self.folder / f"slurmd-{node}.pid").unlink(missing_ok=True)

    def ask(self, *command: str, check: bool = True) -> str:
        environment = os.environ | self.environment
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert not check or answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
        return answer.stdout

    def wait_for(self, true, seconds: float, what: str) -> None:
        until = time.monotonic() + seconds
        while not true():
            if time.monotonic() > until:
                raise TimeoutError(f"no {what} within {seconds} s\n{self.ask('squeue', check=False)}{self.logs()}")
            time.sleep(0.5)

    def wait_for_jobs(self, seconds: float = 420) -> None:
        self.wait_for(lambda: not self.ask("squeue", "-h").strip(), seconds, "empty queue")

    def logs(self) -> str:
        files = [*self.folder.glob("*.log")]
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)

    def pid(self, name: str) -> int | None:
        try:
            return int((self.folder / f"{name}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def _daemon(self, *command: str) -> None:
        answer = subprocess.run(command, capture_output=True, text=True, env=os.environ | self.environment, timeout=60)
        assert answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}{self.logs()}"

    def _steps(self, node: str) -> list[str]:
        """Return the slurmstepd processes of a node; each is named after its step, and works in the node's spool folder."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                name, environment = (process / "comm").read_text(), (process / "environ").read_bytes()
                own = f"SLURM_CONF={self.folder}/slurm.conf".encode()
                if name.startswith("slurmstepd") and own in environment and f"{node}".encode() in _opened(process):
                    found.append(process.name)
        return found


def _opened(process: Path) -> bytes:
    links = []
    for each in (process / "fd").glob("*"):
        with contextlib.suppress(OSError):
            links.append(os.fsencode(each.readlink()))
    return b"\n".join(links)


def _below(pid: int) -> list[int]:
    """Return all processes that a process has started, however deep."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(process.name))
    found, open_ = [], [pid]
    while open_:
        children = parents.get(open_.pop(), [])
        found += children
        open_ += children
    return found


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            time.sleep(0.1)
            os.kill(pid, 0)
        os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    missing = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"no {missing[0]} here: apt-get install slurm-wlm munge")
    if os.geteuid() != 0:
        pytest.skip("the daemons of Slurm need root")
    hosts = HOSTS.read_text()
    if NAMES not in hosts:
        HOSTS.write_text(f"{hosts.rstrip()}\n{NAMES}\n")
    folder = tmp_path_factory.mktemp("slurm")
    one = Cluster(folder)
    try:
        one.start()
        yield one
    finally:
        one.stop()
        if NAMES not in hosts:
            HOSTS.write_text(HOSTS.read_text().replace(f"{NAMES}\n", ""))

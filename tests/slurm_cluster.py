"""A real SLURM on this machine for the tests marked `slurm`: its own daemons, folder and ports.

`slurmctld`, `munged` and one `slurmd` per "node" run as ordinary processes without systemd and
cgroups, from the Debian packages slurmctld, slurmd, slurm-client and munge. They need root (slurmd
starts tasks as their owner). Nothing of a SLURM that the machine may have is touched.
"""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

NEEDED = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "sinfo", "squeue")
_HOSTS = Path("/etc/hosts")


def why_not() -> str | None:
    """Return why no SLURM can be started here, None if one can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge"
    if os.geteuid() != 0:
        return "a local SLURM needs root"
    return None


@dataclass
class LocalSlurm:
    """A running cluster. `env` is what `sbatch` and friends need to find it."""

    folder: Path
    num_nodes: int
    env: Mapping[str, str]
    _slurmds: dict[str, int] = field(default_factory=dict)

    def run(self, *command: str, check: bool = True) -> str:
        """Return what a SLURM command prints."""
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=False, timeout=60
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}{self.logs()}")
        return done.stdout

    def jobs(self, *states: str) -> list[tuple[str, str, str]]:
        """Return id, name and node list of the jobs in the queue, of some states or all."""
        chosen = ["-t", ",".join(states)] if states else []
        text = self.run("squeue", "-h", *chosen, "-o", "%i|%j|%N")
        return [tuple(line.split("|")) for line in text.splitlines()]  # type: ignore[misc]

    def kill_node(self, node: str) -> None:
        """Take a node away as a power cut does: its slurmd and all its tasks, with SIGKILL."""
        os.kill(self._slurmds.pop(node), signal.SIGKILL)
        # The step daemons first: they would report the end of their tasks.
        for process in _of_cluster(self.folder, node):
            process.kill()

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node, and take it up again if it was down."""
        pid_file = self.folder / f"slurmd.{node}.pid"
        pid_file.unlink(missing_ok=True)
        self.run("slurmd", "-N", node)
        _wait_for(lambda: pid_file.is_file() and pid_file.read_text().strip(), f"slurmd of {node}")
        self._slurmds[node] = int(pid_file.read_text())

    def wait_for_nodes(self, timeout_s: float = 60) -> None:
        """Wait until all nodes are idle, whatever was done to them before."""

        def idle() -> bool:
            down = self.run("sinfo", "-h", "-N", "-t", "down,drain,fail", "-o", "%N").split()
            for node in sorted(set(down)):
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
            return len(set(self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split())) == (
                self.num_nodes
            )

        _wait_for(idle, "idle nodes", timeout_s)

    def reset(self) -> None:
        """Cancel all jobs and bring back all nodes: a clean cluster for the next test."""
        for number in range(1, self.num_nodes + 1):
            node = f"n{number}"
            if node not in self._slurmds:
                # Down first: what was completing on a dead node would else stay in the queue.
                self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
                self.start_node(node)

        def empty() -> bool:
            self.run("scancel", "--user=root", check=False)
            return not self.jobs()

        _wait_for(empty, "an empty queue")
        self.wait_for_nodes()

    def logs(self) -> str:
        """Return the last lines of the daemons' logs, for an error."""
        return "".join(
            f"\n== {path.name}\n" + "\n".join(path.read_text().splitlines()[-12:])
            for path in sorted((self.folder / "log").glob("*.log"))
        )


@contextmanager
def start_slurm(
    num_nodes: int = 2,
    cpus: int = 2,
    *,
    memory_mb: int = 4000,
    gpus: int = 0,
    preemption: bool = False,
    grace_s: int = 10,
) -> Iterator[LocalSlurm]:
    """Yield a running SLURM; several may run at once, each with ports of its own.

    Args:
        num_nodes: Nodes n1, n2, ... all on this host.
        cpus: Cores each node claims to have.
        memory_mb: Memory each node claims to have.
        gpus: Stand-in devices per node, for --gres and CUDA_VISIBLE_DEVICES.
        preemption: A second partition `urgent` preempts `main` (requeue, after `grace_s`).
        grace_s: Between SIGTERM and SIGKILL of a preempted job.
    """
    folder = Path(tempfile.mkdtemp(prefix="ecg-slurm-"))
    folder.chmod(0o755)
    # SLURM_* of a job that these tests run in would confuse sbatch.
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    env["SLURM_CONF"] = str(folder / "slurm.conf")
    cluster = LocalSlurm(folder, num_nodes, env)
    try:
        _write_configuration(folder, num_nodes, cpus, memory_mb, gpus, preemption, grace_s)
        # MASTER_ADDR and sbatch look nodes up by name.
        _edit_hosts(
            folder, [f"127.0.0.1 n{number} # {folder.name}\n" for number in range(1, num_nodes + 1)]
        )
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        cluster.run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={folder / 'munge.sock'}",
            f"--pid-file={folder / 'munged.pid'}",
            f"--log-file={folder / 'log' / 'munged.log'}",
            f"--seed-file={folder / 'munge.seed'}",
        )
        cluster.run("slurmctld")
        for number in range(1, num_nodes + 1):
            cluster.start_node(f"n{number}")
        cluster.wait_for_nodes()
        yield cluster
    finally:
        _stop(cluster)
        _edit_hosts(folder, [])
        shutil.rmtree(folder, ignore_errors=True)


def _edit_hosts(folder: Path, lines: list[str]) -> None:
    """Replace this cluster's lines of /etc/hosts, which cannot be renamed in a container."""
    with _HOSTS.open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        kept = [line for line in handle if not line.rstrip().endswith(f"# {folder.name}")]
        handle.seek(0)
        handle.write("".join([*kept, *lines]))
        handle.truncate()


def _write_configuration(
    folder: Path,
    num_nodes: int,
    cpus: int,
    memory_mb: int,
    gpus: int,
    preemption: bool,
    grace_s: int,
) -> None:
    host = socket.gethostname().split(".")[0]
    ports = _free_ports(num_nodes + 1)
    for name in ("state", "log", "spool"):
        (folder / name).mkdir()
    lines = [
        "ClusterName=ecgtest",
        f"SlurmctldHost={host}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        f"SlurmdPort={ports[1]}",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={folder}/munge.sock,cred_expire=5",
        f"SlurmctldPidFile={folder}/slurmctld.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"StateSaveLocation={folder}/state",
        f"SlurmdPidFile={folder}/slurmd.%n.pid",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        f"SlurmdSpoolDir={folder}/spool/%n",
        # Neither cgroups nor accounting: they need more of the machine than a test may ask for.
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "MpiDefault=none",
        "MailProg=/bin/true",
        "ReturnToService=2",
        "SlurmdParameters=config_overrides",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "KillWait=5",
        "MessageTimeout=10",
        "SlurmdTimeout=10",
        "InactiveLimit=0",
    ]
    gres = ""
    if gpus:
        lines.append("GresTypes=gpu")
        gres = f" Gres=gpu:{gpus}"
        (folder / "gres.conf").write_text(
            f"NodeName=n[1-{num_nodes}] Name=gpu File=/dev/tty[1-{gpus}]\n"
        )
    lines += [
        f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[number]} "
        f"CPUs={cpus} RealMemory={memory_mb}{gres} State=UNKNOWN"
        for number in range(1, num_nodes + 1)
    ]
    main = "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
    if preemption:
        lines += ["PreemptType=preempt/partition_prio", "PreemptMode=REQUEUE"]
        main += f" PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace_s}"
        lines.append(
            "PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 "
            "PreemptMode=OFF"
        )
    lines.append(main)
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def _stop(cluster: LocalSlurm) -> None:
    if (cluster.folder / "slurmctld.pid").exists():
        cluster.run("scancel", "--user=root", check=False)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and cluster.run("squeue", "-h", check=False).strip():
            time.sleep(0.1)
    daemons = []
    for path in [*cluster.folder.glob("slurmd.*.pid"), *cluster.folder.glob("*.pid")]:
        try:
            process = psutil.Process(int(path.read_text()))
            if str(cluster.folder) in " ".join([*process.cmdline(), *process.environ().values()]):
                process.terminate()
                daemons.append(process)
        except (OSError, ValueError, psutil.NoSuchProcess):
            continue
    _, alive = psutil.wait_procs(daemons, timeout=10)
    # What is left of nodes that were killed: step daemons and tasks of this cluster, no others.
    for process in [*alive, *_of_cluster(cluster.folder)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _of_cluster(folder: Path, node: str | None = None) -> list[psutil.Process]:
    """Return the step daemons and tasks of the cluster in `folder`, daemons first."""
    daemons, tasks = [], []
    for process in psutil.process_iter():
        try:
            env = process.environ()
            if env.get("SLURM_CONF") != str(folder / "slurm.conf"):
                continue
            if "SLURMD_NODENAME" not in env or node not in (None, env["SLURMD_NODENAME"]):
                continue
            tasks.append(process)
            # Their titles overwrite their environment: they are known by their children.
            daemons += [p for p in process.parents() if p.name().startswith("slurmstepd")]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [*dict.fromkeys(daemons), *tasks]


def _wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.1)

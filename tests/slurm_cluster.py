"""A real SLURM on this machine for the tests marked `slurm`: its own daemons, folder and ports.

`slurmctld`, `munged` and one `slurmd` per "node" run as ordinary processes without systemd and
cgroups, from the Debian packages slurmctld, slurmd, slurm-client and munge. They need root (slurmd
starts tasks as their owner). Nothing of a SLURM that the machine may have is touched.

With `cables=True` every node lives in a network namespace of its own, and a virtual cable joins it
to a switch (a bridge): what is pulled out then is what a network card would see.
"""

import fcntl
import os
import random
import shutil
import signal
import socket
import string
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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


def why_no_cables() -> str | None:
    """Return why nodes cannot have networks of their own here, None if they can."""
    if reason := why_not():
        return reason
    if shutil.which("ip") is None or shutil.which("nsenter") is None:
        return "no ip or nsenter: apt-get install iproute2 util-linux"
    try:
        with lay_cables(1):
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces here: {error.stderr.strip()}"


@dataclass(frozen=True)
class Network:
    """A switch with one cable to every node: `NAMEs`, `NAMEv1`, ... in this namespace."""

    name: str
    subnet: str

    @property
    def switch_address(self) -> str:
        return f"{self.subnet}.254"

    def address(self, number: int) -> str:
        return f"{self.subnet}.{number}"


@dataclass
class LocalSlurm:
    """A running cluster. `env` is what `sbatch` and friends need to find it."""

    folder: Path
    num_nodes: int
    env: Mapping[str, str]
    network: Network | None = None
    _slurmds: dict[str, int] = field(default_factory=dict)

    @property
    def nodes(self) -> list[str]:
        """Names of the nodes. With cables they are unlike those of any other cluster here, whose
        nodes have other addresses."""
        prefix = self.network.name if self.network else "n"
        return [f"{prefix}{number}" for number in range(1, self.num_nodes + 1)]

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

    def wait_for(
        self, reached: Callable[[], object], what: str, log: Path, timeout_s: float = 400
    ) -> None:
        """Wait for something that the jobs in the queue bring about; `log` is what they say."""
        deadline = time.monotonic() + timeout_s
        while not reached():
            said = log.read_text() if log.exists() else ""
            assert time.monotonic() < deadline, f"no {what}: {said}{self.logs()}"
            assert self.jobs() or reached(), f"over before {what}: {said}"
            time.sleep(0.1)

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
        inside = []
        if self.network:
            inside = ["nsenter", f"--net=/run/netns/{self._namespace(node)}"]
        self.run(*inside, "slurmd", "-N", node)
        _wait_for(lambda: pid_file.is_file() and pid_file.read_text().strip(), f"slurmd of {node}")
        self._slurmds[node] = int(pid_file.read_text())

    def cut_cable(self, node: str) -> None:
        """Pull the cable of a node: it runs on, and nobody hears of it."""
        ip("link", "set", self._cable(node), "down")

    def mend_cable(self, node: str) -> None:
        """Put the cable of a node back."""
        ip("link", "set", self._cable(node), "up")

    def cut_between(self, one: str, other: str) -> None:
        """Lose whatever two nodes send each other; SLURM still reaches both.

        As when the network of the computation fails, and that of the administration does not.
        """
        self._routes("add", one, other)

    def mend_between(self, one: str, other: str) -> None:
        """Let two nodes hear each other again."""
        self._routes("del", one, other)

    def _routes(self, verb: str, one: str, other: str) -> None:
        assert self.network
        for node, peer in ((one, other), (other, one)):
            address = self.network.address(self.nodes.index(peer) + 1)
            ip("-n", self._namespace(node), "route", verb, "blackhole", address)

    def _cable(self, node: str) -> str:
        assert self.network
        return f"{self.network.name}v{self.nodes.index(node) + 1}"

    def _namespace(self, node: str) -> str:
        assert self.network
        return namespace_of(self.network, self.nodes.index(node) + 1)

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
        for node in self.nodes:
            if self.network:
                self.mend_cable(node)
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
    cables: bool = False,
    node_timeout_s: int = 10,
) -> Iterator[LocalSlurm]:
    """Yield a running SLURM; several may run at once, each with ports of its own.

    Args:
        num_nodes: Nodes n1, n2, ... all on this host.
        cpus: Cores each node claims to have.
        memory_mb: Memory each node claims to have.
        gpus: Stand-in devices per node, for --gres and CUDA_VISIBLE_DEVICES.
        preemption: A second partition `urgent` preempts `main` (requeue, after `grace_s`).
        grace_s: Between SIGTERM and SIGKILL of a preempted job.
        cables: Every node has a network of its own, joined by cables that can be cut; tasks need
            GLOO_SOCKET_IFNAME=eth0.
        node_timeout_s: After how long SLURM gives up a node that it does not hear.
    """
    folder = Path(tempfile.mkdtemp(prefix="ecg-slurm-"))
    folder.chmod(0o755)
    # SLURM_* of a job that these tests run in would confuse sbatch.
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    env["SLURM_CONF"] = str(folder / "slurm.conf")
    stack = ExitStack()
    network = stack.enter_context(lay_cables(num_nodes)) if cables else None
    cluster = LocalSlurm(folder, num_nodes, env, network)
    try:
        _write_configuration(cluster, cpus, memory_mb, gpus, preemption, grace_s, node_timeout_s)
        # MASTER_ADDR and sbatch look nodes up by name.
        _edit_hosts(
            folder,
            [
                f"{_address(cluster, number)} {node} # {folder.name}\n"
                for number, node in enumerate(cluster.nodes, 1)
            ],
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
        for node in cluster.nodes:
            cluster.start_node(node)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        _stop(cluster)
        _edit_hosts(folder, [])
        shutil.rmtree(folder, ignore_errors=True)
        stack.close()


@contextmanager
def lay_cables(num_nodes: int) -> Iterator[Network]:
    """Yield a switch with a cable to each of some nodes, and take everything away again."""
    used = ip("-4", "-o", "addr")
    free = [f"10.{a}.{b}" for a in (77, 78) for b in range(256) if f" 10.{a}.{b}." not in used]
    # Names of interfaces have at most fifteen characters.
    name = "ecg" + "".join(random.SystemRandom().choices(string.ascii_lowercase, k=5))
    network = Network(name, random.SystemRandom().choice(free))
    switch, numbers = f"{name}s", range(1, num_nodes + 1)
    try:
        ip("link", "add", switch, "type", "bridge")
        ip("addr", "add", f"{network.switch_address}/24", "dev", switch)
        ip("link", "set", switch, "up")
        for number in numbers:
            cable, inside = f"{name}v{number}", namespace_of(network, number)
            ip("netns", "add", inside)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", inside)
            ip("link", "set", cable, "master", switch, "up")
            ip("-n", inside, "addr", "add", f"{network.address(number)}/24", "dev", "eth0")
            ip("-n", inside, "link", "set", "eth0", "up")
            ip("-n", inside, "link", "set", "lo", "up")
        yield network
    finally:
        for number in numbers:
            ip("netns", "del", namespace_of(network, number), check=False)
            ip("link", "del", f"{name}v{number}", check=False)
        ip("link", "del", switch, check=False)


def namespace_of(network: Network, number: int) -> str:
    return f"{network.name}-{number}"


def ip(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)
    return done.stdout


def _address(cluster: LocalSlurm, number: int) -> str:
    return cluster.network.address(number) if cluster.network else "127.0.0.1"


def _edit_hosts(folder: Path, lines: list[str]) -> None:
    """Replace this cluster's lines of /etc/hosts, which cannot be renamed in a container."""
    with _HOSTS.open("r+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        kept = [line for line in handle if not line.rstrip().endswith(f"# {folder.name}")]
        handle.seek(0)
        handle.write("".join([*kept, *lines]))
        handle.truncate()


def _write_configuration(
    cluster: LocalSlurm,
    cpus: int,
    memory_mb: int,
    gpus: int,
    preemption: bool,
    grace_s: int,
    node_timeout_s: int,
) -> None:
    folder, num_nodes = cluster.folder, cluster.num_nodes
    switch = cluster.network.switch_address if cluster.network else "127.0.0.1"
    host = socket.gethostname().split(".")[0]
    ports = _free_ports(num_nodes + 1)
    for name in ("state", "log", "spool"):
        (folder / name).mkdir()
    lines = [
        "ClusterName=ecgtest",
        f"SlurmctldHost={host}({switch})",
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
        # Half of what sites give tasks between the signal and the end.
        "KillWait=15",
        "MessageTimeout=10",
        f"SlurmdTimeout={node_timeout_s}",
        "InactiveLimit=0",
    ]
    gres = ""
    if gpus:
        lines.append("GresTypes=gpu")
        gres = f" Gres=gpu:{gpus}"
        (folder / "gres.conf").write_text(
            f"NodeName={','.join(cluster.nodes)} Name=gpu File=/dev/tty[1-{gpus}]\n"
        )
    lines += [
        f"NodeName={node} NodeHostname={host} NodeAddr={_address(cluster, number)} "
        f"Port={ports[number]} CPUs={cpus} RealMemory={memory_mb}{gres} State=UNKNOWN"
        for number, node in enumerate(cluster.nodes, 1)
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
            if node is None and process.name().startswith("slurmstepd"):
                # One that was cut off outlives its tasks.
                if process.cwd().startswith(str(folder)):
                    daemons.append(process)
                continue
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

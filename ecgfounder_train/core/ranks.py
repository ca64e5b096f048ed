"""Rank, world size and launcher of this process, from the variables of SLURM, torchrun and MPI.

`detect` reads the environment and never fails: every script asks it who may print. Training asks
`require_launch`, which compares all sources with `trainer.devices x trainer.num_nodes` and refuses
a process that is not a rank of the job, before any file is written. No torch at import.
"""

import fcntl
import os
import re
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from ecgfounder_train.core.errors import UserError

CHILD_VARIABLE = "ECGFOUNDER_STARTED_BY"
"""Set for the ranks that rank 0 starts itself: its process id and the ranks of a node."""
LOCAL_ADDRESS = "127.0.0.1"
_SIOCGIFFLAGS = 0x8913
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE")
_BY_HAND = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)


@dataclass(frozen=True)
class Launch:
    """Who this process is.

    Attributes:
        launcher: `own` (rank 0, which starts further ranks itself), `child` (one of those),
            `torchrun`, `slurm`, `mpi`, or `variables` (RANK and WORLD_SIZE set by hand).
        rank: Rank in the job.
        world_size: Ranks of the job by the launcher; None where it does not say.
        local_rank: Rank on its node; None where it does not say.
        node_rank: Number of its node; None where it does not say.
        size_variable: The variable that holds `world_size`.
        local_variable: The variable that holds `local_rank`.
    """

    launcher: str
    rank: int = 0
    world_size: int | None = None
    local_rank: int | None = None
    node_rank: int | None = None
    size_variable: str = ""
    local_variable: str = "LOCAL_RANK"

    @property
    def starts_ranks(self) -> bool:
        """Whether this process starts further ranks itself."""
        return self.launcher == "own"


def detect(environment: Mapping[str, str] | None = None) -> Launch:
    """Return who this process is by its environment; variables without a launcher mean nothing."""
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env and (rank := _number(env, "RANK")) is not None:
        return Launch(
            "torchrun",
            rank,
            _number(env, "WORLD_SIZE"),
            _number(env, "LOCAL_RANK"),
            _number(env, "GROUP_RANK"),
            "WORLD_SIZE",
        )
    parent, _, devices = env.get(CHILD_VARIABLE, "").partition(":")
    if parent == str(os.getppid()) and devices.isdigit():
        local, node = _number(env, "LOCAL_RANK") or 0, _number(env, "NODE_RANK") or 0
        world_size = _number(env, "WORLD_SIZE")
        return Launch("child", node * int(devices) + local, world_size, local, node, "WORLD_SIZE")
    for names in _MPI[:1]:
        if found := _mpi(env, *names):
            return found
    tasks = _slurm_tasks(env)
    if tasks > 1:
        return Launch(
            "slurm",
            _number(env, "SLURM_PROCID") or 0,
            tasks,
            _number(env, "SLURM_LOCALID"),
            _number(env, "SLURM_NODEID"),
            "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS",
            "SLURM_LOCALID",
        )
    for names in _MPI[1:]:
        if found := _mpi(env, *names):
            return found
    if all(env.get(name) for name in _BY_HAND) and (rank := _number(env, "RANK")) is not None:
        return Launch(
            "variables",
            rank,
            _number(env, "WORLD_SIZE"),
            _number(env, "LOCAL_RANK"),
            _number(env, "NODE_RANK"),
            "WORLD_SIZE",
        )
    node = _number(env, "NODE_RANK") or 0
    is_parent = parent == str(os.getpid()) or "LOCAL_RANK" not in env
    if node and is_parent and env.get("MASTER_ADDR") and env.get("MASTER_PORT"):
        # One start by hand on each node; each starts the other ranks of its node.
        return Launch("own", node, node_rank=node)
    return Launch("own")


def process_rank() -> int:
    """Return this process's rank, 0 when alone."""
    return detect().rank


def is_rank_zero() -> bool:
    """Return whether this process writes the files and prints the messages of the job."""
    return process_rank() == 0


def require_launch(
    devices: int, num_nodes: int, environment: Mapping[str, str] | None = None
) -> Launch:
    """Return who this process is in a job of `devices` ranks on each of `num_nodes` nodes.

    Raises:
        UserError: The environment contradicts that; names the variable.
    """
    env = os.environ if environment is None else environment
    launch = detect(env)
    expected = devices * num_nodes
    asked = f"trainer.devices={devices} x trainer.num_nodes={num_nodes}"
    if launch.starts_ranks:
        _refuse_leftovers(env, devices, num_nodes)
    else:
        _check_world(launch, expected, asked)
        _check_layout(launch, devices, num_nodes, env)
        _check_agreement(launch, env)
    if expected > 1:
        _require_network(env, num_nodes)
    node = launch.rank // devices if launch.node_rank is None else launch.node_rank
    local = launch.rank % devices if launch.local_rank is None else launch.local_rank
    rank = node * devices + local if launch.starts_ranks else launch.rank
    return Launch(launch.launcher, rank, expected, local, node, launch.size_variable)


def _mpi(env: Mapping[str, str], rank: str, size: str, local: str) -> Launch | None:
    found, count = _number(env, rank), _number(env, size)
    if found is None or count is None or count < 2:
        return None
    return Launch("mpi", found, count, _number(env, local), None, size, local)


def _slurm_tasks(env: Mapping[str, str]) -> int:
    """Return the tasks of the step that srun started this process in, 1 outside of any."""
    if "SLURM_STEP_NUM_TASKS" in env:
        return _number(env, "SLURM_STEP_NUM_TASKS") or 1
    # A batch shell has SLURM_NTASKS and SLURM_PROCID=0, but is no step that srun started.
    return (_number(env, "SLURM_NTASKS") or 1) if "SLURM_STEP_ID" in env else 1


def _check_world(launch: Launch, expected: int, asked: str) -> None:
    size = launch.world_size
    if size is None:
        raise UserError(
            f"This process has RANK={launch.rank} but no {launch.size_variable}: the number of "
            "ranks is not known. Start it with srun, torchrun or mpirun, or unset RANK."
        )
    if size != expected:
        raise UserError(
            f"{launch.size_variable}={size}, but {asked} asks for {expected} rank(s): "
            f"{'more' if size > expected else 'fewer'} processes were started than the run has "
            f"ranks. Start {expected} of them, or set trainer.devices (ranks on each node) and "
            f"trainer.num_nodes to what is started{_unset_hint(launch)}."
        )
    if not 0 <= launch.rank < size:
        raise UserError(
            f"This process has rank {launch.rank} of {launch.size_variable}={size}: it is not a "
            "rank of this job. Start all ranks with one launcher."
        )


def _unset_hint(launch: Launch) -> str:
    if launch.launcher != "variables":
        return ""
    return "; if RANK and WORLD_SIZE are left over from another job: unset RANK WORLD_SIZE"


def _check_layout(launch: Launch, devices: int, num_nodes: int, env: Mapping[str, str]) -> None:
    """Raise unless each node has `devices` ranks, numbered node by node."""
    local = launch.rank % devices if launch.local_rank is None else launch.local_rank
    node = launch.rank // devices if launch.node_rank is None else launch.node_rank
    if local < devices and node < num_nodes and node * devices + local == launch.rank:
        return
    if launch.launcher == "slurm":
        spread = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE") or "?"
        raise UserError(
            f"Rank {launch.rank} is task SLURM_LOCALID={local} of node SLURM_NODEID={node} (tasks "
            f"per node: {spread}), but trainer.devices={devices} asks for {devices} task(s) on "
            f"each of {num_nodes} node(s), numbered node by node. Start them with srun "
            f"--nodes={num_nodes} --ntasks-per-node={devices} --distribution=block."
        )
    raise UserError(
        f"Rank {launch.rank} has {launch.local_variable}={local} on node {node}, but "
        f"trainer.devices={devices} on each of {num_nodes} node(s) makes it "
        f"{launch.local_variable}={launch.rank % devices} on node {launch.rank // devices}. Start "
        f"{devices} rank(s) on each node, or set trainer.devices and trainer.num_nodes; if the "
        f"variable is left over from another job: unset {launch.local_variable}."
    )


def _check_agreement(launch: Launch, env: Mapping[str, str]) -> None:
    """Raise if a leftover RANK contradicts the launcher that this process was started by."""
    if launch.launcher not in ("slurm", "mpi"):
        return
    for name, value in (("RANK", launch.rank), ("WORLD_SIZE", launch.world_size)):
        if env.get(name) not in (None, "", str(value)):
            raise UserError(
                f"{name}={env[name]} contradicts {launch.launcher}, by which this process is rank "
                f"{launch.rank} of {launch.world_size}. It is left over from another job: unset "
                f"{name} where the job is started."
            )


def _refuse_leftovers(env: Mapping[str, str], devices: int, num_nodes: int) -> None:
    """Raise if variables name a rank, though no launcher has started this process."""
    expected = devices * num_nodes
    harmless: dict[str, tuple[str, ...]] = {
        "RANK": ("", "0") if expected == 1 else ("",),
        "LOCAL_RANK": ("", "0") if expected == 1 else ("",),
        "NODE_RANK": ("", "0"),
        "GROUP_RANK": ("", "0"),
        "WORLD_SIZE": ("", str(expected)),
    }
    if num_nodes > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
        if missing or _number(env, "NODE_RANK") is None:
            raise UserError(
                f"trainer.num_nodes={num_nodes}, but no launcher has started this process. Start "
                f"it with srun, torchrun or mpirun, or once on each node with NODE_RANK (0 to "
                f"{num_nodes - 1}), MASTER_ADDR and MASTER_PORT set."
            )
        harmless["NODE_RANK"] = tuple(str(number) for number in range(num_nodes))
    found = [name for name in _RANK_VARIABLES if env.get(name, "") not in harmless[name]]
    if not found and (_number(env, "SLURM_PROCID") or 0) > 0 and _slurm_tasks(env) == 1:
        found = ["SLURM_PROCID"]
    if found:
        shown = " and ".join(f"{name}={env[name]}" for name in found)
        raise UserError(
            f"{shown} in the environment, but no launcher (srun, torchrun, mpirun) has started "
            "this process as a rank of a job: it is left over from another job. Run: unset "
            f"{' '.join(found)}"
        )
    address = env.get("MASTER_ADDR", "")
    here = ("", "localhost", LOCAL_ADDRESS, "::1", socket.gethostname(), socket.getfqdn())
    if 1 < expected == devices and address not in here:
        raise UserError(
            f"MASTER_ADDR={address} is not this machine, but trainer.num_nodes=1. It is left over "
            "from another job. Run: unset MASTER_ADDR"
        )


def _require_network(env: Mapping[str, str], num_nodes: int) -> None:
    """Raise unless ranks can talk to each other over the interface that gloo will take."""
    present = {name: _is_up(name) for _, name in socket.if_nameindex()}
    up = [name for name, is_up in present.items() if is_up]
    shown = ", ".join(f"{name} ({'up' if is_up else 'down'})" for name, is_up in present.items())
    wanted = [name for name in re.split(r"[, ]+", env.get("GLOO_SOCKET_IFNAME", "")) if name]
    for name in wanted:
        if not present.get(name):
            raise UserError(
                f"GLOO_SOCKET_IFNAME={name} is not a network interface of this machine that is up. "
                f"There are: {shown or 'none'}. Name one that is up, or unset GLOO_SOCKET_IFNAME."
            )
    address = env.get("MASTER_ADDR", LOCAL_ADDRESS)
    if num_nodes == 1 and not (wanted or _answers_locally()):
        raise UserError(
            f"No network interface is usable, and the ranks of a job talk over one. There are: "
            f"{shown or 'none'}. Bring one up (ip link set lo up), name one that is up in "
            "GLOO_SOCKET_IFNAME, or train with one rank (trainer.devices=1)."
        )
    if num_nodes > 1 and not [name for name in up if name != "lo"]:
        raise UserError(
            f"No network interface to other nodes is up (there are: {shown or 'none'}), but "
            f"trainer.num_nodes={num_nodes}. Name one in GLOO_SOCKET_IFNAME (and "
            "NCCL_SOCKET_IFNAME) on every node."
        )
    if num_nodes > 1 and "MASTER_ADDR" in env:
        try:
            socket.getaddrinfo(address, None)
        except OSError as error:
            raise UserError(
                f"MASTER_ADDR={address} cannot be resolved here ({error}). Give the name or "
                "address of the node of rank 0 as every node knows it."
            ) from error


def _is_up(interface: str) -> bool:
    if sys.platform != "linux":
        return True  # not known
    request = struct.pack("256s", interface.encode()[:15])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            answer = fcntl.ioctl(any_socket.fileno(), _SIOCGIFFLAGS, request)
    except OSError:
        return False
    return bool(struct.unpack("16xH", answer[:18])[0] & 1)


def _answers_locally() -> bool:
    try:
        with (
            socket.create_server((LOCAL_ADDRESS, 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            return True
    except OSError:
        return False


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "").strip()
    return int(text) if text.isdigit() else None

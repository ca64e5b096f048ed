"""The ranks of a job for Lightning: who has started them, and how rank 0 starts them itself.

`core.ranks` decides who this process is. Lightning's own detection believes in SLURM wherever an
allocation is, and in any LOCAL_RANK that is set, so it is not asked.
"""

import os
import subprocess
from collections.abc import Callable
from typing import Any

import lightning as L
import torch.distributed
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from typing_extensions import override

from ecgfounder_train.core.ranks import CHILD_VARIABLE, LOCAL_ADDRESS, Launch

_SET_FOR_RANKS = (CHILD_VARIABLE, "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR",
                  "MASTER_PORT")  # fmt: skip
_FIRST_PORT = 15000


class JobEnvironment(LightningEnvironment):
    """Lightning's view of a `Launch`."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self.launch = launch

    @property
    @override
    def creates_processes_externally(self) -> bool:
        return not self.launch.starts_ranks

    @property
    @override
    def main_address(self) -> str:
        if "MASTER_ADDR" in os.environ:
            return os.environ["MASTER_ADDR"]
        if self.launch.launcher != "slurm":
            return LOCAL_ADDRESS
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "")
        return SLURMEnvironment.resolve_root_node_address(nodes) or LOCAL_ADDRESS

    @property
    @override
    def main_port(self) -> int:
        if "MASTER_PORT" in os.environ or self.launch.starts_ranks:
            return super().main_port
        # All ranks have to arrive at the same number without talking to each other.
        job = os.environ.get("SLURM_JOB_ID", "")
        number = int(job[-4:]) if job[-4:].isdigit() else os.getppid() % 10_000
        return _FIRST_PORT + number

    @override
    def local_rank(self) -> int:
        return self.launch.local_rank or 0

    @override
    def node_rank(self) -> int:
        return self.launch.node_rank or 0

    @override
    def teardown(self) -> None:
        """Leave the environment to the launcher, which restores it."""


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks of this node with this process's command.

    Args:
        environment: Who this process is.
        num_processes: Ranks of this node.
        num_nodes: Nodes.
        watch: Called in the background with the processes that were started.
    """

    def __init__(
        self,
        environment: JobEnvironment,
        num_processes: int,
        num_nodes: int,
        watch: Callable[[list["subprocess.Popen[bytes]"]], None],
    ) -> None:
        super().__init__(environment, num_processes, num_nodes)
        self._watch = watch

    @override
    def launch(
        self, function: Callable[..., Any], *args: Any, trainer: L.Trainer | None = None, **kw: Any
    ) -> Any:
        former = {name: os.environ.get(name) for name in _SET_FOR_RANKS}
        os.environ[CHILD_VARIABLE] = f"{os.getpid()}:{self.num_processes}"
        try:
            self._call_children_scripts()
            self._watch(self.procs)
            result = function(*args, **kw)
            # The next member of a sweep begins in this process, as if there had been no other.
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            return result
        finally:
            for name, value in former.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

"""A process knows who it is in a job, or is refused with the variable that contradicts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.ranks import CHILD_VARIABLE, detect, process_rank, require_launch

HAND = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "1", **HAND}


def srun(rank: int, tasks: int, local: int, node: int = 0, **more: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": str(tasks),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
        **more,
    }


@pytest.mark.parametrize(
    ("environment", "devices", "nodes", "launcher", "rank"),
    [
        ({}, 1, 1, "own", 0),
        ({}, 4, 1, "own", 0),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, 1, 1, "own", 0),
        # A batch shell, where nothing was started by srun.
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 2, 1, "own", 0),
        (srun(0, 1, 0), 2, 1, "own", 0),
        (srun(1, 2, 1), 2, 1, "slurm", 1),
        (srun(3, 4, 1, 1, SLURM_STEP_TASKS_PER_NODE="2(x2)"), 2, 2, "slurm", 3),
        (srun(1, 2, 1, PMI_RANK="1", PMI_SIZE="2", RANK="1"), 2, 1, "slurm", 1),
        ({**ELASTIC, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, 2, 1, "torchrun", 1),
        ({**srun(0, 1, 0), **ELASTIC, "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"},
         2, 1, "torchrun", 1),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 2, 1, "mpi", 1),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, 4, 1, "mpi", 2),
        ({**HAND, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, 2, 2, "variables", 3),
        ({**HAND, "NODE_RANK": "1"}, 2, 2, "own", 2),
        ({CHILD_VARIABLE: f"{os.getppid()}:2", "LOCAL_RANK": "1", "WORLD_SIZE": "2", **HAND},
         2, 1, "child", 1),
    ],
)  # fmt: skip
def test_rank_and_launcher_are_found(
    environment: dict[str, str], devices: int, nodes: int, launcher: str, rank: int
) -> None:
    launch = require_launch(devices, nodes, environment) if nodes == 1 else detect(environment)
    assert launch.launcher == launcher
    if nodes == 1:
        assert (launch.rank, launch.world_size) == (rank, devices)


@pytest.mark.parametrize(
    ("environment", "devices", "variable"),
    [
        ({"RANK": "1"}, 1, "RANK"),
        ({"LOCAL_RANK": "1"}, 1, "LOCAL_RANK"),
        ({"NODE_RANK": "1"}, 1, "NODE_RANK"),
        ({"NODE_RANK": "1"}, 2, "NODE_RANK"),
        ({"LOCAL_RANK": "0"}, 2, "LOCAL_RANK"),
        ({"RANK": "0"}, 2, "RANK"),
        ({"WORLD_SIZE": "8"}, 1, "WORLD_SIZE"),
        ({"RANK": "x"}, 1, "RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, 1, "RANK"),
        ({**HAND, "RANK": "1", "WORLD_SIZE": "2"}, 1, "WORLD_SIZE=2"),
        ({**HAND, "RANK": "5", "WORLD_SIZE": "2"}, 2, "WORLD_SIZE=2"),
        ({**HAND, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, 2, "LOCAL_RANK"),
        ({CHILD_VARIABLE: "1:2", "LOCAL_RANK": "1"}, 2, "LOCAL_RANK"),
        ({"MASTER_ADDR": "node17"}, 2, "MASTER_ADDR"),
        ({"SLURM_PROCID": "1"}, 1, "SLURM_PROCID"),
        (srun(1, 2, 1), 1, "SLURM_STEP_NUM_TASKS=2"),
        (srun(2, 3, 2), 2, "SLURM_STEP_NUM_TASKS=3"),
        (srun(0, 2, 0, RANK="1"), 2, "RANK=1"),
        (srun(1, 2, 0, 1), 2, "--ntasks-per-node=2"),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "3"}, 2, "OMPI_COMM_WORLD_SIZE=3"),
        ({**ELASTIC, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, 2, "WORLD_SIZE=4"),
        ({"GLOO_SOCKET_IFNAME": "nosuch0"}, 2, "GLOO_SOCKET_IFNAME=nosuch0"),
    ],
)
def test_process_that_is_not_a_rank_is_refused_with_the_variable(
    environment: dict[str, str], devices: int, variable: str
) -> None:
    with pytest.raises(UserError) as refusal:
        require_launch(devices, 1, environment)
    assert variable in str(refusal.value) and "\n" not in str(refusal.value)


def test_several_nodes_without_a_launcher_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer.num_nodes=2.*NODE_RANK"):
        require_launch(2, 2, {})


def test_leftover_variable_does_not_silence_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process_rank() == 0


def test_no_network_interface_is_named(tmp_path: Path) -> None:
    tool = shutil.which("unshare")
    code = (
        "from ecgfounder_train.core.ranks import require_launch\n"
        "try:\n    require_launch(2, 1, {})\nexcept ValueError as error:\n    print(error)"
    )
    command = [str(tool), "-n", sys.executable, "-c", code]
    process = subprocess.run(command, capture_output=True, text=True, check=False) if tool else None
    if process is None or process.returncode:
        pytest.skip("cannot take the network away here")
    assert "No network interface is usable" in process.stdout
    assert "GLOO_SOCKET_IFNAME" in process.stdout and "lo (down)" in process.stdout

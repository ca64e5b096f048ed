"""Each rank finds its own GPU, whether SLURM shows a task all GPUs of its node or one alone.

SLURM is real, its GPUs are stand-ins: the tasks ask for devices, but compute nothing on them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import LocalSlurm, start_slurm, why_not

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.training.trainer import require_gpus

TASK = """
import json, os, sys, torch
from pathlib import Path
from lightning.pytorch.plugins.environments import SLURMEnvironment
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.training.failures import OwnRanksStrategy
from ecgfounder_train.training.trainer import require_gpus
names = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
require_gpus(2, len(names), os.environ)
strategy = OwnRanksStrategy(
    RunDirectory(Path(sys.argv[1])), 0.0, 2,
    parallel_devices=[torch.device("cuda", number) for number in range(len(names))],
    cluster_environment=SLURMEnvironment(auto_requeue=False),
)
strategy.num_nodes = 2
strategy.set_world_ranks()
print(json.dumps({
    "rank": strategy.global_rank,
    "world_size": strategy.world_size,
    "node": strategy.node_rank,
    "gpu": names[strategy.root_device.index],
}))
"""


@pytest.fixture(scope="module")
def slurm_with_gpus() -> Iterator[LocalSlurm]:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with start_slurm(num_nodes=2, cpus=2, gpus=2) as cluster:
        yield cluster


@pytest.mark.slurm
@pytest.mark.multiprocess
@pytest.mark.parametrize("asked", ["--gpus-per-task=1", "--gres=gpu:2"])
def test_four_tasks_on_two_nodes_take_a_gpu_each(
    slurm_with_gpus: LocalSlurm, tmp_path: Path, asked: str
) -> None:
    words = ["srun", "--nodes=2", "--ntasks-per-node=2", asked, sys.executable, "-c", TASK]
    done = subprocess.run(
        [*words, str(tmp_path)],
        env=slurm_with_gpus.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(task["rank"] for task in told) == [0, 1, 2, 3]
    assert {task["world_size"] for task in told} == {4}
    assert sorted((task["node"], task["gpu"]) for task in told) == [
        (0, "0"),
        (0, "1"),
        (1, "0"),
        (1, "1"),
    ]


def test_fewer_gpus_than_ranks_are_told_before_anything_starts() -> None:
    require_gpus(8, 8, {})
    require_gpus(8, 1, {"SLURM_STEP_NUM_TASKS": "16", "SLURM_GPUS_ON_NODE": "8"})
    with pytest.raises(UserError, match=r"trainer\.devices=8, but this machine has 4 GPUs"):
        require_gpus(8, 4, {})
    with pytest.raises(UserError, match=r"trainer\.devices=8, but this machine has 4 GPUs"):
        require_gpus(8, 1, {"SLURM_STEP_NUM_TASKS": "16", "SLURM_GPUS_ON_NODE": "4"})
    # One task, so that Lightning would start the other ranks, which see no GPU of their own.
    with pytest.raises(UserError, match=r"this machine has 1 GPUs"):
        require_gpus(8, 1, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_GPUS_ON_NODE": "8"})
    with pytest.raises(UserError, match="sees 2 of the 8 GPUs"):
        require_gpus(8, 2, {"SLURM_STEP_NUM_TASKS": "8", "SLURM_GPUS_ON_NODE": "8"})

"""Who am I among the processes of a job, read from the environment before torch is imported."""

import os

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def process_rank() -> int:
    """Return this process's rank as torchrun, SLURM or Lightning set it, 0 when alone."""
    for name in _RANK_VARIABLES:
        if os.environ.get(name, "").isdigit():
            # sbatch sets SLURM_PROCID=0 for the batch shell too, which is what we want.
            return int(os.environ[name])
    return 0


def is_rank_zero() -> bool:
    """Tell whether this process writes the files and prints the messages of the job."""
    return process_rank() == 0

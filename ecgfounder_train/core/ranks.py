"""Who am I among the processes of a job, read from the environment before torch is imported."""

import os

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


def process_rank() -> int:
    """Return this process's rank as torchrun, SLURM or Lightning set it, 0 when alone."""
    ranks = [os.environ.get(name, "") for name in _RANK_VARIABLES]
    if ranks[0].isdigit():
        return int(ranks[0])
    # SLURM_PROCID=0 is inherited from a batch shell, or from the one task of a step, by ranks that
    # were started there in another way.
    return next((int(rank) for rank in ranks if rank.isdigit() and int(rank) > 0), 0)


def is_rank_zero() -> bool:
    """Tell whether this process writes the files and prints the messages of the job."""
    return process_rank() == 0

"""OpenMP threads on a CPU: bounded spinning, and as many threads as there are idle cores.

An OpenMP thread that waits for the others spins. On a quiet machine that is the fastest way; beside
other processes the spinning threads take the cores from those that compute. A step of `net1d_1m` at
12 x 1000 on two cores, ECG/s quiet / beside two busy processes: as imported 365 / 6, passive
waiting 163 / 174, `GOMP_SPINCOUNT=100000` 355 / 102, one thread 298 / 148.
"""

import math
import os
from pathlib import Path

SPIN_COUNT = "100000"
"""Iterations a thread of GNU OpenMP spins before it sleeps, about 0.1 ms."""

_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def bound_spinning() -> None:
    """Bound how long OpenMP threads spin; call it before torch is imported.

    A variable that the user has set takes precedence.
    """
    if not any(name in os.environ for name in _BY_USER):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def allowed_cores() -> int:
    """Return the cores this process may use: its affinity, bounded by the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = _CGROUP_QUOTA.read_text().split()[:2]
        limit = math.ceil(int(quota) / int(period)) if quota != "max" else cores
    except (OSError, ValueError):
        limit = cores
    return max(1, min(cores or 1, limit or 1))


def choose_threads() -> tuple[int, str]:
    """Return how many threads to compute with, and the reason as a sentence.

    The cores that the processes of the last minute leave idle, at least one; OMP_NUM_THREADS takes
    precedence.
    """
    cores = allowed_cores()
    if (asked := os.environ.get("OMP_NUM_THREADS", "").split(",")[0]).isdigit() and int(asked):
        return int(asked), f"{asked} threads (OMP_NUM_THREADS)"
    try:
        load = os.getloadavg()[0] * cores / (os.cpu_count() or cores)
    except OSError:
        load = 0.0
    threads = max(1, min(cores, round(cores - load)))
    plural = "s" if threads > 1 else ""
    return threads, f"{threads} thread{plural} ({cores} cores allowed, load {load:.1f})"

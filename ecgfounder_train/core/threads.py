"""OpenMP threads on a CPU: spinning is bounded, so that a busy machine does not stall a run.

An OpenMP thread that waits for the others spins. On a quiet machine that is the fastest way; beside
other processes the spinning threads take the cores from those that compute. A step of `net1d_1m` at
12 x 1000 on two cores, ECG/s quiet / beside two busy processes: as imported 365 / 6, passive
waiting 163 / 174, `GOMP_SPINCOUNT=100000` 355 / 102, one thread 298 / 148.
"""

import os

SPIN_COUNT = "100000"
"""Iterations a thread of GNU OpenMP spins before it sleeps, about 0.1 ms."""

_BY_USER = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")


def bound_spinning() -> None:
    """Bound how long OpenMP threads spin; call it before torch is imported.

    A variable that the user has set takes precedence.
    """
    if not any(name in os.environ for name in _BY_USER):
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT

"""Ctrl-C and the batch system's signals: noted by a handler, acted on at the end of a step.

Saving inside a signal handler deadlocks when one rank is in its backward pass and another at the
save's barrier (lightning issue 21406; seen in 2 of 3 signals), so the handler only sets a flag.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LONGEST_GRACE_S = 1800.0
"""Longer than any site's grace time of preemption."""


class StopRequest:
    """Which signal asked this process to stop, if any.

    Args:
        notice: Line for stderr at the first signal; empty: none.
    """

    def __init__(self, notice: str = "") -> None:
        self.signal: signal.Signals | None = None
        self._notice = f"{notice}\n" if notice else ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            # A second Ctrl-C asks not to wait for the end of the step.
            raise KeyboardInterrupt
        if self.signal is None and self._notice:
            # Not by print or logging, which may be in the middle of a line.
            with suppress(OSError):
                os.write(2, self._notice.encode())
        self.signal = signal.Signals(number)

    def listen(self) -> None:
        """Become the only handler of the signals.

        Called again when Lightning has started: it puts a handler of its own before ours on
        SIGTERM, which ends the run by an exception before anything is saved, and with several ranks
        calls a collective from inside the handler.
        """
        for number in SIGNALS:
            signal.signal(number, self)

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as a shell reports it; 0 when there was none."""
        return 0 if self.signal is None else 128 + int(self.signal)


def stay_if_preempted(request: StopRequest) -> None:
    """Wait for the end that SLURM has announced by SIGTERM; return at once in any other case.

    A job that ends within the grace time of a preemption is not requeued; one that is still there
    when the time is over is killed and requeued (measured with SLURM 22.05). `scancel` kills too.
    """
    if request.signal is not signal.SIGTERM or "SLURM_STEP_ID" not in os.environ:
        return
    deadline = time.monotonic() + LONGEST_GRACE_S
    while time.monotonic() < deadline:
        time.sleep(0.5)


@contextmanager
def stop_on_signals(notice: str = "") -> Iterator[StopRequest]:
    """Yield a request that SIGINT, SIGTERM and SIGUSR1 fill while the block runs.

    Also where the process was started with them blocked, as a child inherits it: it would
    not notice its time limit, and be killed with nothing saved.

    Args:
        notice: Line for stderr at the first signal; empty: none.
    """
    request = StopRequest(notice)
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    request.listen()
    blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield request
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Ctrl-C in a script: an end at once while it starts, a `KeyboardInterrupt` while it works.

An exception is no good while libraries are imported and the config is composed: some catch whatever
comes and go on with half of it. Stopped while numpy was imported, a script ended after half a
minute with a RecursionError; stopped in omegaconf, with an AttributeError about None.
"""

import _thread
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

INTERRUPTED = 130
"""Exit status of a process that Ctrl-C ended, as a shell reports it."""

_SCRIPTS = Path(__file__).parents[2] / "scripts"
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_ASK_AGAIN_S = 0.05
_owed = {"exception": False}
"""Whether Ctrl-C came during an import and has not been raised yet. No lock: a handler may meet
itself."""


def say_interrupted(remedy: str = "") -> None:
    """Say how to go on after Ctrl-C."""
    say = f"interrupted. {remedy or 'Run the same command again.'}"
    print(say, file=sys.stderr, flush=True)


def end_script_at_ctrl_c() -> None:
    """From now on Ctrl-C ends this process at once, if it is one of our scripts.

    Nothing changes for a program or notebook of somebody else, nor where the signal is ignored.
    """
    script = Path(sys.argv[0])
    ours = script.parent.name == _SCRIPTS.name and script.parent.resolve() == _SCRIPTS.resolve()
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def ctrl_c_as_exception() -> Iterator[None]:
    """While the block runs Ctrl-C is a `KeyboardInterrupt`; during an import, when that is over.

    By then others may have been started that only an exception brings to their end. A signal that
    is ignored, or has a handler of somebody else, keeps it.
    """
    before = signal.getsignal(signal.SIGINT)
    if before not in (_end, signal.default_int_handler):
        yield
        return
    signal.signal(signal.SIGINT, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if _owed["exception"]:  # the block was faster
            _owed["exception"] = False
            raise KeyboardInterrupt


def _end(number: int, frame: FrameType | None) -> None:
    # A terminal sends the signal to the processes a script has started, too; one of them speaks.
    if "--multiprocessing-fork" not in sys.orig_argv:
        with suppress(RuntimeError):  # the signal came in the middle of a print
            sys.stdout.flush()
            say_interrupted()
    os._exit(INTERRUPTED)


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT_SYSTEM:
            _owed["exception"] = True
            _thread.start_new_thread(_press_again, ())
            return
        frame = frame.f_back
    _owed["exception"] = False
    raise KeyboardInterrupt


def _press_again() -> None:
    time.sleep(_ASK_AGAIN_S)
    if _owed["exception"]:
        _thread.interrupt_main()

"""Ctrl-C and closed pipes: a clean exit status, and output that is no longer read is dropped.

Ctrl-C ends a script at once while it starts, and is a `KeyboardInterrupt` while it works.

An exception does not work while libraries are imported and the config is composed: some catch any
exception and continue half imported. Stopped while numpy was imported, a script ended after half a
minute with a RecursionError; stopped in omegaconf, with an AttributeError about None.
"""

import _thread
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""Exit status of a process that Ctrl-C ended, as a shell reports it."""

_PACKAGE = Path(__file__).resolve().parents[1]
_SCRIPTS = (_PACKAGE.parent / "scripts", _PACKAGE / "commands")
_IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
_ASK_AGAIN_S = 0.05
_owed = {"exception": False}
"""Whether Ctrl-C came during an import and has not been raised yet. No lock: a handler may meet
itself."""


class _TolerantStream:
    """A text stream that drops its text once the reader has closed the pipe."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text if the pipe is closed."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._drop(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or drop what is buffered if the pipe is closed."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise error
        # The buffer keeps what it could not write: from now on it goes to where nothing is kept.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def tolerate_closed_pipes() -> None:
    """From now on drop output that is no longer read (`| head -1`, a closed terminal).

    A run does not end with the program that shows it: it saves and ends with its own exit status.
    Characters that the terminal cannot show are escaped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, _TolerantStream):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, _TolerantStream(stream))


def say_interrupted(remedy: str = "") -> None:
    """Print how to continue after Ctrl-C."""
    say = f"interrupted. {remedy or 'Run the same command again.'}"
    print(say, file=sys.stderr, flush=True)


def end_script_at_ctrl_c() -> None:
    """From now on Ctrl-C ends this process at once, if it is one of our scripts.

    Nothing changes in other programs and notebooks, nor where the signal is ignored.
    """
    script = Path(sys.argv[0])
    ours = script.stem == "ecgfounder" or script.parent.resolve() in _SCRIPTS
    if ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def ctrl_c_as_exception() -> Iterator[None]:
    """While the block runs Ctrl-C is a `KeyboardInterrupt`; during an import, when that is over.

    By then others may have been started that only an exception brings to their end. A signal that
    is ignored, or has another handler, keeps it.
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

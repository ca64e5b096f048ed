"""Signals that ask a run to stop."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import run_tools
from tiny_set import tiny_overrides

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.signals import SIGNALS, stop_on_signals


@contextmanager
def blocked(*numbers: signal.Signals) -> Iterator[None]:
    former = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


@pytest.mark.parametrize("number", SIGNALS)
def test_blocked_signal_is_heard_and_blocked_again_afterwards(number: signal.Signals) -> None:
    handler = signal.getsignal(number)
    with blocked(number):
        # To this thread: another one of this process may not block it.
        signal.pthread_kill(threading.get_ident(), number)
        with stop_on_signals() as stop:
            assert stop.signal is number
            assert stop.exit_code == 128 + number
        assert number in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.getsignal(number) == handler


@pytest.mark.multiprocess
def test_run_whose_launcher_blocks_signals_saves_when_asked_to_stop(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    with blocked(*SIGNALS):
        process = run_tools.command(
            tiny_overrides(tiny_shards, tmp_path, "run", "budget.max_epochs=9999")
        )
    try:
        run_tools.wait_for_step(run, 1, lambda: process.poll() is None)
        before = run_tools.latest_step(run)
        process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
        assert process.returncode == 128 + signal.SIGUSR1, output
        assert run_tools.latest_step(run) >= before
        assert json.loads(run.state_file.read_text())["state"] == "stopped"
    finally:
        process.kill()

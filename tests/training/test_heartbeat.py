"""A cut cable is noticed in seconds, a busy or ended process is not taken for one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from slurm_cluster import LocalSlurm, ip, lay_cables, namespace_of, why_no_cables

from ecgfounder_train.training.heartbeat import Heartbeat

TIMEOUT_S = 3.0
OTHER_RANK = """
import sys, time
from ecgfounder_train.training.heartbeat import Heartbeat
lines = Heartbeat(float(sys.argv[1]), lambda rank: print("lost", rank, flush=True))
lines.connect(1, sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4]))
print("connected", flush=True)
time.sleep(60)
"""


@contextmanager
def other_rank(host: str, port: int, token: bytes, *inside: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is rank 1, connected."""
    arguments = [str(TIMEOUT_S), host, str(port), token.hex()]
    process = subprocess.Popen(
        [*inside, sys.executable, "-c", OTHER_RANK, *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout and process.stdout.readline() == "connected\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def lost() -> list[int]:
    """Ranks that rank 0 says it does not hear any more."""
    return []


@pytest.fixture
def lines(lost: list[int]) -> Iterator[Heartbeat]:
    lines = Heartbeat(TIMEOUT_S, lost.append)
    yield lines
    lines.close()


def wait_for(lost: list[int], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not lost and time.monotonic() < deadline:
        time.sleep(0.05)


def test_cut_cable_is_noticed_at_both_ends(
    lines: Heartbeat, lost: list[int], tmp_path: Path
) -> None:
    if reason := why_no_cables():
        pytest.skip(reason)
    with ExitStack() as stack:
        network = stack.enter_context(lay_cables(1))
        node = LocalSlurm(tmp_path, 1, dict(os.environ), network)
        inside = ("nsenter", f"--net=/run/netns/{namespace_of(network, 1)}")
        port, token = lines.listen()
        process = stack.enter_context(other_rank(network.switch_address, port, token, *inside))
        node.cut_cable(node.nodes[0])
        wait_for(lost, 30)
        assert lost == [1]
        assert process.stdout and process.stdout.readline() == "lost 0\n"
        assert ip("-n", namespace_of(network, 1), "link"), "the node itself lives"


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_rank_that_hangs_or_has_ended_is_not_taken_for_a_cut_cable(
    lines: Heartbeat, lost: list[int], number: signal.Signals
) -> None:
    port, token = lines.listen()
    with other_rank("127.0.0.1", port, token) as process:
        process.send_signal(number)
        wait_for(lost, 1.5 * TIMEOUT_S if number is signal.SIGSTOP else 1)
    assert lost == []


def test_stranger_and_missing_rank_0_are_no_failure(lines: Heartbeat, lost: list[int]) -> None:
    port, token = lines.listen()
    stranger = Heartbeat(TIMEOUT_S, lost.append)
    stranger.connect(1, "127.0.0.1", port, bytes(len(token)))
    with pytest.warns(UserWarning, match="will be detected after"):
        Heartbeat(TIMEOUT_S, lost.append).connect(1, "127.0.0.1", 1, token)
    wait_for(lost, 0.5)
    stranger.close()
    assert lost == []

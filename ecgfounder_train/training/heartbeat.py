"""Node heartbeat over TCP keepalive: detects within seconds that another node no longer answers.

A collective cannot distinguish a busy rank from one whose cable is cut: it waits for
`trainer.ddp_timeout_s`. The kernels can: every rank of another node keeps a silent TCP connection
to rank 0, whose keepalive the other node answers however busy or stopped the process there is.
"""

import errno
import secrets
import selectors
import socket
import struct
import threading
import warnings
from collections.abc import Callable
from typing import Any

_GREETING = struct.Struct("!16sI")
"""Token of the job, rank."""
_POLL_S = 1.0
_CONNECT_S = 20.0
_NO_ANSWER = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Errors of a connection whose other end no longer answers. A process that ended has its
connections closed or reset, which is none of these."""


class Heartbeat:
    """The connections of one rank, watched by a thread of their own."""

    def __init__(self, timeout_s: float, lost: Callable[[int], None]) -> None:
        """Prepare to watch.

        Args:
            timeout_s: How long a node may not answer.
            lost: Called once, from the thread, with the rank that no longer answers.
        """
        self._timeout_s = timeout_s
        self._lost = lost
        self._closed = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._token = b""

    def listen(self) -> tuple[int, bytes]:
        """Begin as rank 0; return the port and the token that the others need."""
        self._token = secrets.token_bytes(16)
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        listener = socket.create_server(("", 0), family=family, backlog=1024, dualstack_ipv6=dual)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._watch()
        return listener.getsockname()[1], self._token

    def connect(self, rank: int, host: str, port: int, token: bytes) -> None:
        """Begin as another rank; if rank 0 cannot be reached in this way, warn and do without."""
        try:
            line = socket.create_connection((host, port), timeout=_CONNECT_S)
            line.sendall(_GREETING.pack(token, rank))
        except OSError as error:
            warnings.warn(
                f"no connection from rank {rank} to {host}:{port} ({error}): a cut cable will be "
                "detected after trainer.ddp_timeout_s only",
                stacklevel=2,
            )
            return
        self._add(line, 0)
        self._watch()

    def close(self) -> None:
        """Stop watching; the other ends see an ordinary end."""
        self._closed.set()

    def _add(self, line: socket.socket, rank: int) -> None:
        third = max(1, int(self._timeout_s / 3))
        for option, value in (
            (socket.TCP_KEEPIDLE, third),
            (socket.TCP_KEEPINTVL, max(1, third // 5)),
            (socket.TCP_USER_TIMEOUT, int(1000 * self._timeout_s)),
        ):
            line.setsockopt(socket.IPPROTO_TCP, option, value)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        line.setblocking(False)
        self._selector.register(line, selectors.EVENT_READ, rank)

    def _watch(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select(_POLL_S):
                if key.data is None:
                    self._answer(key.fileobj)
                elif self._has_ended(key.fileobj, key.data):
                    self._selector.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _answer(self, listener: Any) -> None:
        line, _ = listener.accept()
        try:
            line.settimeout(_CONNECT_S)
            token, rank = _GREETING.unpack(line.recv(_GREETING.size, socket.MSG_WAITALL))
        except (OSError, struct.error):
            token, rank = b"", 0
        if secrets.compare_digest(token, self._token):
            self._add(line, rank)
        else:
            line.close()

    def _has_ended(self, line: Any, rank: int) -> bool:
        try:
            return not line.recv(64)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in _NO_ANSWER and not self._closed.is_set():
                self._lost(rank)
            return True


def can_be_watched() -> bool:
    """Return whether this system has the TCP options of a heartbeat (Linux does)."""
    return hasattr(socket, "TCP_USER_TIMEOUT") and hasattr(socket, "TCP_KEEPIDLE")

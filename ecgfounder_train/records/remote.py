"""WFDB records behind an fsspec URL: fetched into memory, several at a time."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.core.untrusted import reject_unexpected
from ecgfounder_train.records.header import (
    MAX_HEADER_BYTES,
    RecordHeader,
    decode_header,
    parse_header,
)
from ecgfounder_train.records.reader import decode_record, is_fast, read_record
from ecgfounder_train.records.record import EcgRecord
from ecgfounder_train.records.storage import Options, join, open_bytes

Item = TypeVar("Item")
Result = TypeVar("Result")


def read_remote_record(root: str, record_path: str, options: Options | None = None) -> EcgRecord:
    """Return the record at `record_path` (no extension) below the URL `root`.

    Raises:
        RejectedRecordError: It is absent, or what is there cannot be read; as for a local file.
        OSError: The storage refused; or, if it did not answer, whatever its client library raises.
            Nothing is known about the record then.
    """
    url = join(root, record_path)
    header = _header(url, options)
    folder = url.rsplit("/", 1)[0]
    if is_fast(header):
        names = dict.fromkeys(spec.file_name for spec in header.signals)
        files = {name: _signal(f"{folder}/{name}", options) for name in names}
        with reject_unexpected():
            return decode_record(header, files)
    # Other formats are read by `wfdb`, which wants files.
    with tempfile.TemporaryDirectory(prefix="ecgfounder-record-") as local:
        _copy(url, Path(local), header, options)
        return read_record(Path(local) / url.rsplit("/", 1)[1])


def fetched(
    items: Iterable[Item], fetch: Callable[[Item], Result], num_threads: int
) -> Iterator[Callable[[], Result]]:
    """Yield, in order, what gives each item's result or raises its error, fetched ahead.

    No more than twice `num_threads` results wait in memory.
    """
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(fetch, item))
                if len(waiting) >= 2 * num_threads:
                    yield waiting.popleft().result
            while waiting:
                yield waiting.popleft().result
        finally:
            for future in waiting:
                future.cancel()


def _header(url: str, options: Options | None) -> RecordHeader:
    content = _header_bytes(url, options)
    with reject_unexpected(RejectReason.UNREADABLE_HEADER):
        return parse_header(decode_header(content))


def _header_bytes(url: str, options: Options | None) -> bytes:
    try:
        return open_bytes(f"{url}.hea", options, limit=MAX_HEADER_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise RejectedRecordError(RejectReason.MISSING_HEADER, "file is absent") from None


def _signal(url: str, options: Options | None) -> bytes:
    try:
        return open_bytes(url, options)
    except (FileNotFoundError, IsADirectoryError):
        raise RejectedRecordError(RejectReason.MISSING_SIGNAL_FILE, "file is absent") from None


def _copy(url: str, local: Path, header: RecordHeader, options: Options | None) -> None:
    """Fetch a header, the headers of its segments, and all their signal files."""
    folder, stem = url.rsplit("/", 1)
    (local / f"{stem}.hea").write_bytes(open_bytes(f"{url}.hea", options))
    for name in dict.fromkeys(spec.file_name for spec in header.signals if spec.file_name != "~"):
        if not header.segments:
            (local / name).write_bytes(_signal(f"{folder}/{name}", options))
    for name, length in header.segments:
        if name == "~" or (local / f"{name}.hea").exists():
            continue
        if length == 0:  # the layout of a variable-layout record: a header without files
            (local / f"{name}.hea").write_bytes(_header_bytes(f"{folder}/{name}", options))
        else:
            segment = _header(f"{folder}/{name}", options)
            if segment.segments:
                raise RejectedRecordError(
                    RejectReason.UNREADABLE_HEADER, "segments within segments"
                )
            _copy(f"{folder}/{name}", local, segment, options)

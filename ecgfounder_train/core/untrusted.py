"""Guards and bounds for files of strangers: no content ends a batch or takes the machine's memory.

Sizes that a file states are compared with the file and with a bound before anything of that size is
read, listed or allocated. What a reader raises in spite of its checks becomes a counted rejection.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError

MAX_RECORDS_PER_FILE = 1_000_000
"""CODE-15's largest file holds 20,000 recordings."""
MAX_EXPANSION = 1100
"""Times its stored size that compressed content may state; deflate reaches 1,032."""
MAX_STATED_BYTES = 1 << 32
"""24 hours of 12 leads at 500 Hz as float64."""


@contextmanager
def reject_unexpected(
    reason: RejectReason = RejectReason.UNEXPECTED_ERROR, *, keep: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever the content of one file or record raises into a rejection that can be counted.

    The detail holds the exception's kind and the line that raised it, never its message: messages
    of libraries hold paths and content.

    Args:
        reason: Of the rejection.
        keep: Exceptions that are not about the record and pass, as UserError always does.

    Raises:
        RejectedRecordError: As raised inside, or in place of another exception.
    """
    try:
        yield
    except (RejectedRecordError, UserError):
        raise
    except Exception as error:
        if isinstance(error, keep):
            raise
        raise RejectedRecordError(reason, f"unexpected {error_kind(error)}") from None


def error_kind(error: Exception) -> str:
    """Return an exception's kind and where it was raised, without its message."""
    kind = type(error)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "ecgfounder_train" in Path(frame.filename).parts and frame.filename != __file__
    ]
    # Of this package: the innermost frame of a recursion or a library says little.
    where = f" in {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{name}{where}"


def check_stated_bytes(stated: int, stored: int, *, compressed: bool) -> None:
    """Reject content that states more bytes than its stored ones can hold.

    Args:
        stated: Bytes that shape and type ask for.
        stored: Bytes that the file keeps for it.
        compressed: Whether it is stored compressed.

    Raises:
        RejectedRecordError: It states too much.
    """
    most = min(stored * (MAX_EXPANSION if compressed else 1), MAX_STATED_BYTES)
    if not 0 <= stated <= most:
        raise RejectedRecordError(
            RejectReason.UNREADABLE_SIGNAL,
            f"the file states {stated:,} bytes of signal where it stores {stored:,}",
        )


def check_num_records(count: int) -> None:
    """Reject a file that states more recordings than are ever listed.

    Raises:
        RejectedRecordError: It states more than `MAX_RECORDS_PER_FILE`.
    """
    if not 0 <= count <= MAX_RECORDS_PER_FILE:
        raise RejectedRecordError(
            RejectReason.UNREADABLE_SIGNAL,
            f"the file states {count:,} recordings; at most {MAX_RECORDS_PER_FILE:,} are read",
        )


def hdf5_datasets(file: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and data set of everything an HDF5 file itself holds, in the order of names.

    Links to other files and soft links are not followed. What a data set states is checked with
    `check_hdf5_dataset` before it is read.
    """
    import h5py

    found: list[str] = []
    file.id.links.visit(lambda name: found.append(name.decode(errors="surrogateescape")))
    for name in sorted(found):
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            node = file[name]
            if isinstance(node, h5py.Dataset):
                yield name, node


def check_hdf5_dataset(data: Any) -> None:
    """Reject an HDF5 data set that reads other files or states more than the file stores.

    External storage and virtual data sets name any path of the reader's machine: its bytes would
    become the signal, and a pipe would hang the reader.

    Raises:
        RejectedRecordError: It refers to another file, stores nothing, or states too much.
    """
    if data.external or data.is_virtual:
        raise RejectedRecordError(
            RejectReason.UNREADABLE_SIGNAL, "an HDF5 data set refers to another file"
        )
    # Without storage every value is the fill value: a terabyte of it takes no byte of the file.
    check_stated_bytes(
        int(data.size or 0) * data.dtype.itemsize,
        data.id.get_storage_size(),
        compressed=data.compression is not None or bool(data.scaleoffset),
    )

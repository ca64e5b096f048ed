"""Files that are whole or absent: written under a temporary name, synced, renamed."""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.private_files import is_private, open_private_file

PARTIAL_MARK = ".partial-"


@contextmanager
def atomic_file(path: Path | str, mode: str = "wb") -> Iterator[IO[Any]]:
    """Yield a file that becomes `path` only when the block ends without an error.

    In a folder that only its owner can read, the file has mode 0600. The bytes are synced before
    the rename and the folder after it, so that a power cut leaves either the old file or the new
    one. The temporary name is beside the target (a rename must not cross file systems) and is drawn
    at random: on a cluster two nodes may write the same target under one process id.
    `sweep_partial_files` removes leftovers.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    path, is_written = Path(path), False
    partial = path.with_name(f"{path.name}{PARTIAL_MARK}{secrets.token_hex(6)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        opener = open_private_file if is_private(path.parent) else None
        encoding = None if "b" in mode else "utf-8"
        with open(partial, mode, encoding=encoding, opener=opener) as handle:
            yield handle
            is_written = True
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        number = _error_number(error)
        # A device error inside the block may be one of reading.
        if number in _WRITE_ERRORS or (is_written and number in _DEVICE_ERRORS):
            raise UserError(
                f"Cannot write {path}: {os.strerror(number)}. Nothing half-written was left "
                "behind. Free space or choose another folder, then run the same command again."
            ) from error
        raise


def _error_number(error: BaseException) -> int:
    """Return the system's error number, which polars and safetensors have in their text only."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = _NUMBER_IN_TEXT.search(str(error))
    return int(match[1]) if match else 0


_NUMBER_IN_TEXT = re.compile(r"\(os error (\d+)\)")
_WRITE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM),
}
_DEVICE_ERRORS = {errno.EIO, errno.ESTALE}


def sync_folder(folder: Path) -> None:
    """Make the renames in `folder` durable; file systems without directory sync are left alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep_partial_files(folder: Path | str) -> int:
    """Delete what killed writers left in `folder` (not below it) and return how many files."""
    leftovers = [path for path in Path(folder).glob(f"*{PARTIAL_MARK}*") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def sha256_file(path: Path | str) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

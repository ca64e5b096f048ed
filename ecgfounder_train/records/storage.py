"""Files of an archive, on a local path or at any fsspec URL (`s3://`, `gs://`, `memory://` ...).

A local path never touches fsspec: ten million records are opened through the plain `os` calls of
`reader.py`. `storage_options` are fsspec's own; for a bucket whose requester pays they are
``{"requester_pays": true}``, for another endpoint ``{"endpoint_url": "http://..."}``.
"""

import errno
import fnmatch
import json
import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from ecgfounder_train.core.errors import UserError

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+(::|://)")
_NEEDED = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "az": "adlfs",
}

_BLOCK_BYTES = 1 << 18
"""A record of an HDF5 file is about as large: of larger blocks most would not be used."""

Options = Mapping[str, Any]


def is_remote(root: Path | str) -> bool:
    """Return whether `root` is a URL that fsspec must open; `file://` counts as one."""
    return isinstance(root, str) and _URL.match(root) is not None


def join(root: Path | str, relative: str) -> str:
    """Return the path or URL of a file below `root`."""
    return f"{str(root).rstrip('/')}/{relative}"


def open_bytes(
    path_or_url: Path | str, storage_options: Options | None = None, limit: int | None = None
) -> bytes:
    """Return the content of a file, at most its first `limit` bytes.

    Raises:
        FileNotFoundError: It is absent.
        OSError: It cannot be read (permission, connection, a folder, a pipe).
        UserError: The protocol is unknown, or its package is not installed.
    """
    if not is_remote(path_or_url):
        with open(path_or_url, "rb", opener=_open_regular) as handle:
            return handle.read(-1 if limit is None else limit)
    system, path = file_system(str(path_or_url), storage_options)
    try:
        content: bytes = system.cat_file(path, start=None if limit is None else 0, end=limit)
        return content
    except OSError as error:
        if limit is None or "range" not in str(error):
            raise
        return b""  # S3 refuses any range of an empty object


def open_remote(url: str, storage_options: Options | None = None) -> Any:
    """Return a binary file to read and seek in, of which blocks are fetched as they are needed.

    Raises:
        OSError: It is absent or cannot be read.
        UserError: The protocol is unknown, or its package is not installed.
    """
    system, path = file_system(url, storage_options)
    return system.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="blockcache")


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file; a pipe or device would hang or flood the reader."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file")


@contextmanager
def reading(url: Path | str) -> Iterator[None]:
    """Turn any error of a storage into a UserError that names the URL.

    Raises:
        UserError: No connection, no credentials, no permission, no such bucket.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Client libraries raise their own errors (botocore's are not OSErrors).
        if not is_remote(url) and not isinstance(error, OSError | ValueError):
            raise
        words = getattr(error, "strerror", None) or str(error)
        remedy = (
            "Check the URL and source.storage_options (credentials, requester_pays, endpoint_url)."
            if is_remote(url)
            else "Check the path and its permissions."
        )
        raise UserError(
            f"{url} cannot be read ({type(error).__name__}: {words}). {remedy}"
        ) from error


def list_files(
    root: Path | str, suffixes: Sequence[str] = (), storage_options: Options | None = None
) -> Iterator[str]:
    """Yield the relative paths of the files below `root` that end in one of `suffixes`.

    Folders come in sorted order and files sorted within them, so the order depends on names alone.
    The case of a suffix does not matter. A linked folder is followed unless it leads back into the
    root, or around it: its files are listed once, and a loop ends.

    Raises:
        OSError: The root is absent or cannot be listed.
        UserError: The protocol is unknown, or its package is not installed.
    """
    chosen = tuple(suffixes) or ("",)
    if is_remote(root):
        system, top = file_system(str(root), storage_options)
        top = top.rstrip("/")
        for folder, folders, files in system.walk(top, on_error="raise"):
            if isinstance(folders, list):  # in place: the walk continues in this order
                folders.sort()
            prefix = folder.rstrip("/")[len(top) :].strip("/")
            for name in sorted(files):
                if name.lower().endswith(chosen):
                    yield f"{prefix}/{name}" if prefix else name
        return
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder")
    top_folder = Path(root).resolve()
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, onerror=_raise, followlinks=True):
        folders[:] = sorted(
            name for name in folders if _is_new(Path(folder, name), top_folder, seen)
        )
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(files):
            if name.lower().endswith(chosen):
                yield name if prefix == "." else f"{prefix}/{name}"


def _is_new(folder: Path, root: Path, seen: set[tuple[int, int]]) -> bool:
    """Return whether a folder is to be walked: not again, and not by a link back into the root."""
    if folder.is_symlink():
        target = folder.resolve()
        if target.is_relative_to(root) or root.is_relative_to(target):
            return False
    info = folder.stat()
    identity = (info.st_dev, info.st_ino)
    is_new = identity not in seen
    seen.add(identity)
    return is_new


def _raise(error: OSError) -> None:
    # Without it `os.walk` skips a folder that must not be listed, with all its records.
    raise OSError(error.errno, f"{error.strerror} ({error.filename})")


def local_copy(root: Path | str, name: str, storage_options: Options | None = None) -> Path:
    """Return the path of one file below `root`, copied to this machine if the root is a URL.

    An absolute path stays as it is.

    Raises:
        UserError: The storage does not answer. A file that is absent is not: the path then leads
            to none.
    """
    if not is_remote(root) or Path(name).is_absolute():
        return Path(root) / name
    target = _temporary_folder(join(root, name)) / posixpath.basename(name)
    with reading(join(root, name)):
        try:
            target.write_bytes(open_bytes(join(root, name), storage_options))
        except FileNotFoundError:
            return target
    return target


def fetch_tables(url: str, patterns: Sequence[str], storage_options: Options | None = None) -> Path:
    """Copy the few files of a remote archive that its source reads, and return the local folder.

    Only folders on the way to a match are listed: listing twenty million signals would take hours.
    The folder is temporary and removed when the process ends. Folders directly below the root are
    created as well, empty, so that a layout can be recognised.

    Args:
        patterns: Relative paths with `*` for one component.

    Raises:
        UserError: The URL cannot be listed.
    """
    system, top = file_system(url, storage_options)
    folder = _temporary_folder(url)
    found: set[str] = set()
    with reading(url):
        for entry in system.ls(top, detail=True):
            if entry["type"] == "directory":
                (folder / posixpath.basename(entry["name"].rstrip("/"))).mkdir(exist_ok=True)
        for pattern in patterns:
            found.update(_matches(system, top.rstrip("/"), pattern.split("/"), ""))
        for name in sorted(found):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{top.rstrip('/')}/{name}", str(target))
    return folder


def file_system(url: str, storage_options: Options | None = None) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, shared by this process, and the path within it.

    Raises:
        UserError: The protocol is unknown, its package is not installed, or an option is wrong.
    """
    return _file_system(url.split("://", 1)[0], json.dumps(dict(storage_options or {}))), _within(
        url
    )


@lru_cache(maxsize=16)
def _file_system(protocol: str, options: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(protocol, **json.loads(options))
    except ImportError as error:
        package = _NEEDED.get(protocol, f"the fsspec package of {protocol}")
        raise UserError(f"{protocol}:// needs {package}: pip install {package}.") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{protocol}:// cannot be opened with source.storage_options={options}: {error}."
        ) from error


def _within(url: str) -> str:
    protocol, path = url.split("://", 1)
    return "/" + path.lstrip("/") if protocol in ("file", "local", "memory") else path


def _matches(system: Any, top: str, parts: Sequence[str], below: str) -> Iterator[str]:
    """Yield the relative paths that fit a pattern, listing one folder per component."""
    folder = f"{top}/{below}" if below else top
    try:
        entries = system.ls(folder, detail=True)
    except FileNotFoundError:
        return
    for entry in entries:
        name = posixpath.basename(entry["name"].rstrip("/"))
        if not name or not fnmatch.fnmatch(name, parts[0]):
            continue
        relative = f"{below}/{name}" if below else name
        if len(parts) == 1 and entry["type"] == "file":
            yield relative
        elif len(parts) > 1 and entry["type"] == "directory":
            yield from _matches(system, top, parts[1:], relative)


_FOLDERS: dict[str, "tempfile.TemporaryDirectory[str]"] = {}


def _temporary_folder(url: str) -> Path:
    # Kept in the process: a source reads its tables once, and the build may ask for them again.
    _FOLDERS[url] = tempfile.TemporaryDirectory(prefix="ecgfounder-tables-")
    return Path(_FOLDERS[url].name)

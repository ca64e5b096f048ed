"""Files of an archive, on a local path or at any fsspec URL (`s3://`, `gs://`, `memory://` ...).

A local path never touches fsspec: ten million records are opened through the plain `os` calls of
`reader.py`. `storage_options` are fsspec's own; for a bucket whose requester pays they are
``{"requester_pays": true}``, for another endpoint ``{"endpoint_url": "http://..."}``.
"""

import fnmatch
import json
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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

Options = Mapping[str, Any]


def is_remote(root: Path | str) -> bool:
    """Tell whether `root` is a URL that fsspec must open; `file://` counts as one."""
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
        OSError: It cannot be read (permission, connection, a folder).
        UserError: The protocol is unknown, or its package is not installed.
    """
    if not is_remote(path_or_url):
        with open(path_or_url, "rb") as handle:
            return handle.read(-1 if limit is None else limit)
    system, path = file_system(str(path_or_url), storage_options)
    content: bytes = system.cat_file(path, start=None if limit is None else 0, end=limit)
    return content


def list_files(
    root: Path | str, suffixes: Sequence[str] = (), storage_options: Options | None = None
) -> Iterator[str]:
    """Yield the relative paths of the files below `root` that end in one of `suffixes`.

    Folders come in sorted order and files sorted within them, so the order depends on names alone.

    Raises:
        OSError: The root is absent or cannot be listed.
        UserError: The protocol is unknown, or its package is not installed.
    """
    chosen = tuple(suffixes) or ("",)
    if is_remote(root):
        system, top = file_system(str(root), storage_options)
        top = top.rstrip("/")
        for folder, folders, files in system.walk(top, on_error="raise"):
            if isinstance(folders, list):  # in place: the walk goes on in this order
                folders.sort()
            prefix = folder.rstrip("/")[len(top) :].strip("/")
            for name in sorted(files):
                if name.endswith(chosen):
                    yield f"{prefix}/{name}" if prefix else name
        return
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is no folder")
    for folder, folders, files in os.walk(root):
        folders.sort()
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(files):
            if name.endswith(chosen):
                yield name if prefix == "." else f"{prefix}/{name}"


def fetch_tables(url: str, patterns: Sequence[str], storage_options: Options | None = None) -> Path:
    """Copy the few files of a remote archive that its source reads, and return the local folder.

    Only folders on the way to a match are listed: listing twenty million signals would take hours.
    The folder is temporary and goes when the process ends. Folders directly below the root are
    made as well, empty, so that a layout can be recognised.

    Args:
        patterns: Relative paths with `*` for one component, or `**/NAME` for a whole tree.

    Raises:
        UserError: The URL cannot be listed, or none of the files is there.
    """
    system, top = file_system(url, storage_options)
    folder = _temporary_folder(url)
    found: set[str] = set()
    try:
        for entry in system.ls(top, detail=True):
            if entry["type"] == "directory":
                (folder / posixpath.basename(entry["name"].rstrip("/"))).mkdir(exist_ok=True)
        for pattern in patterns:
            if pattern.startswith("**/"):
                names = list_files(url, (), storage_options)
                found.update(
                    n for n in names if fnmatch.fnmatch(posixpath.basename(n), pattern[3:])
                )
            else:
                found.update(_matches(system, top.rstrip("/"), pattern.split("/"), ""))
        for name in sorted(found):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{top.rstrip('/')}/{name}", str(target))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{url} cannot be read ({type(error).__name__}: {error}). Check the URL and "
            "source.storage_options (credentials, requester_pays, endpoint_url)."
        ) from error
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

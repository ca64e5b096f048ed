"""Private folders: mode 0700, their files 0600, under any umask.

They hold what identifies patients: the secret of the keys, paths of records, rejected records.
`core.files.atomic_file` gives the files it writes into such a folder the mode 0600.
"""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from ecgfounder_train.core.errors import UserError

FOLDER_MODE = 0o700
FILE_MODE = 0o600
_OTHERS = 0o077
PRIVATE_SUFFIX = ".private"
"""Of a folder's name: the private folder of shards or of a run."""


def private_folder(folder: Path | str) -> Path:
    """Return where the catalog, the ledger and the secret of a folder of shards are kept."""
    folder = Path(folder)
    return folder.with_name(folder.name + PRIVATE_SUFFIX)


def is_private(folder: Path) -> bool:
    """Return whether only the owner may list or enter a folder."""
    return not folder.stat().st_mode & _OTHERS


def open_private_folder(folder: Path | str) -> Path:
    """Return a folder that only its owner can read, made if absent; its contents likewise.

    Permissions of others that are found inside are removed, with a warning that counts them.

    Raises:
        UserError: The folder cannot be made or belongs to another user, its file system has no
            permissions, or it is a folder that holds more than private files.
    """
    folder = Path(folder)
    _check_own_folder(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir(FOLDER_MODE)
        except FileExistsError:
            pass
        else:
            folder.chmod(FOLDER_MODE)  # exactly, whatever the umask
        opened = [path for path in _tree(folder) if _close_to_others(path)]
    except OSError as error:
        raise UserError(
            f"Cannot make or protect the private folder {folder}: {error.strerror}. It must be a "
            "folder of yours on a file system with permissions; choose another one."
        ) from error
    if opened:
        print(
            f"warning: others could read {len(opened):,} files or folders of {folder}; now only "
            "you can (modes 0700 and 0600).",
            file=sys.stderr,
        )
    return folder


def open_private_file(path: Path | str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Return a descriptor of a file that only its owner can read, under any umask."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, FILE_MODE)
    os.fchmod(descriptor, FILE_MODE)
    return descriptor


def _check_own_folder(folder: Path) -> None:
    """Refuse a folder whose permissions other programs depend on."""
    resolved = folder.resolve()
    shared = [place for place in (Path.home(), Path.cwd()) if place.is_relative_to(resolved)]
    if shared:
        raise UserError(
            f"{folder} cannot be a private folder: it contains {shared[0]}, and only you could "
            "enter it. Choose a folder of its own, such as SHARDS.private."
        )


def _tree(folder: Path) -> Iterator[Path]:
    yield folder
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent) / name


def _close_to_others(path: Path) -> bool:
    """Remove the permissions of group and others; return whether there were any."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode) or not mode & _OTHERS:
            return False
        path.chmod(stat.S_IMODE(mode) & FOLDER_MODE)
        if path.stat().st_mode & _OTHERS:
            raise PermissionError(None, "its file system keeps no permissions", str(path))
    except FileNotFoundError:
        return False  # a temporary file of another process
    return True

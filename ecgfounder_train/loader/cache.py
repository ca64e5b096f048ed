"""Local cache of remote shards (s3://, http://, slow file systems): whole copies, verified.

The ranks of a node share one cache folder:

    CACHE/.lock                     held while room is made
    CACHE/SET/manifest.json, index.npy
    CACHE/SET/train-000017.tar      a whole shard, its SHA-256 compared with the manifest's
    CACHE/SET/train-000018.tar.partial

Processes coordinate by file locks, which the kernel releases with their holder. A process that
reads a copy or will need it soon holds a shared lock on it; eviction takes the least recently used
copies that are not locked. A process that fetches a shard holds its partial file exclusively, so
that a node fetches it once; the others wait for the file.
"""

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.loader.files import BadSampleError
from ecgfounder_train.shards import INDEX_NAME, ShardSet
from ecgfounder_train.shards.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    IndexEntry,
    Manifest,
    read_manifest,
)

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ATTEMPTS = 3
_PIECE_BYTES = 8 << 20
_POLL_S = 0.05
_PATIENCE_S = 300.0
_OUTAGE_S = 120.0
"""How long a store may be out of reach: shards are fetched long before they are needed."""
_LONGEST_PAUSE_S = 15.0


def is_url(location: Path | str) -> bool:
    """Return whether shards are behind a URL rather than in a folder."""
    return "://" in str(location)


@dataclass(frozen=True)
class CachedShardSet(ShardSet):
    """A shard set whose shards are fetched into a cache when they are needed."""

    cache: "ShardCache"

    def shard_path(self, number: int) -> Path:
        """Return the copy of a shard, fetched now if need be; later reads may find it evicted."""
        os.close(self.cache.open(number))
        return self.cache.path(number)


def open_shards(
    location: Path | str, cache_dir: Path | str | None = None, cache_bytes: float = 100e9
) -> ShardSet:
    """Return the shards in a folder or behind a URL, read through a cache if there is one.

    Args:
        location: Folder, or any URL fsspec knows (s3://BUCKET/FOLDER, https://HOST/FOLDER, ...).
        cache_dir: Folder for copies, on a disk of this node; None reads shards in place.
        cache_bytes: Most bytes all shards in it may take; manifest and index come on top.

    Raises:
        UserError: The shards or the cache cannot be used as asked.
    """
    if cache_dir is None:
        if is_url(location):
            raise UserError(
                f"shards={location} is not on this machine. Set data.cache_dir to a folder on a "
                "local disk (and data.cache_bytes to what it may take)."
            )
        return ShardSet.open(location)
    location = str(location).rstrip("/")
    text = _fetch_manifest(f"{location}/{MANIFEST_NAME}")
    folder = Path(cache_dir) / hashlib.sha256(text).hexdigest()[:16]
    try:
        with _locked(folder / ".lock"):
            with atomic_file(folder / MANIFEST_NAME) as handle:
                handle.write(text)
            manifest = read_manifest(folder)
            if problem := manifest.size_problem():
                raise UserError(f"{location}/{MANIFEST_NAME} is damaged: {problem}.")
            _fetch_index(f"{location}/{INDEX_NAME}", folder / INDEX_NAME, manifest.index)
    except OSError as error:
        raise UserError(
            f"data.cache_dir={cache_dir} cannot be written: {error.strerror}. Set it to a folder "
            "on a local disk that is yours."
        ) from error
    plain = ShardSet.open(folder, check_files=False)
    cache = ShardCache(location, folder, manifest, int(cache_bytes))
    return CachedShardSet(plain.folder, plain.manifest, plain.index, cache)


class ShardCache:
    """Copies of the shards of one set, within a bound that all sets in the folder share.

    Args:
        location: Where the shards are.
        folder: Where their copies go; its parent is the cache.
        manifest: What the shards must be.
        max_bytes: Most bytes of all copies in the cache.
        attempts: How often a shard that comes damaged is fetched before it counts as lost.
    """

    def __init__(
        self,
        location: str,
        folder: Path,
        manifest: Manifest,
        max_bytes: int,
        attempts: int = ATTEMPTS,
    ) -> None:
        self.location = location
        self.folder = folder
        self.manifest = manifest
        self.max_bytes = max_bytes
        self.attempts = attempts
        self.num_fetched = 0
        self._lost: dict[int, str] = {}
        self._full: UserError | None = None
        self._windows: dict[str, list[int]] = {}
        # What is in them: asked of every open file at every batch, and they may be a whole set.
        self._wanted: frozenset[int] = frozenset()
        self._held: dict[int, int] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        largest = max(entry.bytes for entry in manifest.shards)
        if largest > max_bytes:
            raise UserError(
                f"data.cache_bytes={max_bytes:,} does not hold one shard ({largest:,} bytes)."
            )

    def path(self, shard: int) -> Path:
        """Return where the copy of a shard is or would be."""
        return self.folder / self.manifest.shards[shard].name

    def open(self, shard: int) -> int:
        """Return a descriptor of the copy, which is not evicted before it is closed.

        Raises:
            BadSampleError: The shard cannot be fetched, is not what the manifest says, or finds no
                room for minutes.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while (descriptor := self._try_open(shard)) is None:
            if time.monotonic() > deadline:
                raise BadSampleError(
                    f"There is no room for shard {self.path(shard).name}: all copies in the cache "
                    "are in use. Raise data.cache_bytes, or lower data.block_shards."
                )
            time.sleep(_POLL_S)
        return descriptor

    def is_wanted(self, shard: int) -> bool:
        """Return whether the shard is in a window of `want`."""
        return shard in self._wanted

    def want(self, window: str, shards: Sequence[int]) -> None:
        """Fetch these shards ahead, in this order, and keep them until the window moves on.

        Args:
            window: Name of the window; each reader of its own order has one.
            shards: What will be needed soon.
        """
        with self._changed:
            if self._windows.get(window) == list(shards):
                return
            self._windows[window] = list(shards)
            self._wanted = frozenset(shard for some in self._windows.values() for shard in some)
            for shard in self._held.keys() - self._wanted:
                os.close(self._held.pop(shard))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._fetch_ahead, name="shard-cache", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Release all locks; the copies stay."""
        with self._changed:
            self._closed = True
            self._windows.clear()
            self._wanted = frozenset()
            for descriptor in self._held.values():
                os.close(descriptor)
            self._held.clear()
            self._changed.notify_all()

    def _fetch_ahead(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                wanted = [shard for some in self._windows.values() for shard in some]
                missing = [
                    shard for shard in wanted if shard not in self._held and shard not in self._lost
                ]
                if not missing:
                    self._changed.wait()
                    continue
            try:
                descriptor = self._try_open(missing[0])
            except BadSampleError:
                # The reader that needs the shard raises the same error.
                continue
            except UserError:
                return  # likewise; no other shard would fit either
            with self._changed:
                if descriptor is None:
                    self._changed.wait(timeout=10 * _POLL_S)
                elif self.is_wanted(missing[0]) and missing[0] not in self._held:
                    self._held[missing[0]] = descriptor
                else:
                    os.close(descriptor)

    def _try_open(self, shard: int) -> int | None:
        """Return a descriptor with a shared lock, None if there is no room for the copy."""
        if self._full is not None:
            raise self._full
        if shard in self._lost:
            raise BadSampleError(self._lost[shard])
        entry, path = self.manifest.shards[shard], self.path(shard)
        while True:
            descriptor = _open_shared(path, entry.bytes)
            if descriptor is not None:
                return descriptor
            partial = path.with_name(path.name + PARTIAL)
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            keep = False
            try:
                if not _try_lock(descriptor):
                    # Another process fetches it. Waiting for the lock could deadlock: the file
                    # becomes the copy, whose readers may wait for what we hold.
                    time.sleep(_POLL_S)
                    continue
                if path.exists() or not _is_still(descriptor, partial):
                    # Somebody else fetched it meanwhile, or swept it away.
                    continue
                # A killed process may have left a piece of it.
                os.ftruncate(descriptor, 0)
                if not self._reserve(descriptor, entry.bytes):
                    partial.unlink()
                    return None
                try:
                    self._fetch(f"{self.location}/{entry.name}", descriptor, entry.sha256)
                except UserError as error:
                    partial.unlink(missing_ok=True)
                    if isinstance(error, BadSampleError):
                        self._lost[shard] = str(error)
                    raise
                # Not while somebody adds up what is there: it would be seen under neither name.
                with _locked(self.folder.parent / ".lock"):
                    partial.rename(path)
                self.num_fetched += 1
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                # Between the two locks somebody may have evicted it.
                keep = os.fstat(descriptor).st_nlink > 0
                if keep:
                    return descriptor
            finally:
                if not keep:
                    os.close(descriptor)

    def _reserve(self, descriptor: int, size: int) -> bool:
        """Evict unlocked copies until `size` more bytes fit, and reserve them."""
        cache = self.folder.parent
        with _locked(cache / ".lock"):
            copies = []
            for path in [*cache.glob("*/*.tar"), *cache.glob(f"*/*.tar{PARTIAL}")]:
                try:
                    facts = path.stat()
                except FileNotFoundError:
                    continue
                copies.append((facts.st_mtime_ns, facts.st_size, path))
            excess = sum(copy_bytes for _, copy_bytes, _ in copies) + size - self.max_bytes
            for _, copy_bytes, path in sorted(copies):
                if excess <= 0:
                    break
                if copy_bytes and _evict(path):
                    excess -= copy_bytes
            if excess > 0:
                return False
            os.ftruncate(descriptor, size)
        return True

    def _fetch(self, url: str, descriptor: int, sha256: str) -> None:
        size = os.fstat(descriptor).st_size
        damaged, pause, deadline = 0, 0.5, time.monotonic() + _OUTAGE_S
        while True:
            try:
                got, digest = _copy(url, descriptor, size)
            except FileNotFoundError:
                problem = "there is no such file"
                break
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _FULL:
                    self._full = UserError(
                        f"Cannot copy shards to data.cache_dir={self.folder.parent}: "
                        f"{error.strerror}. Free space there, or lower data.cache_bytes."
                    )
                    raise self._full from error
                # Each storage client raises its own errors; all count as a failed attempt.
                problem = f"{type(error).__name__}: {error}"
                if _is_refusal(error) or time.monotonic() > deadline:
                    break
            else:
                if got == size and digest == sha256:
                    return
                problem = (
                    f"it has {got:,} bytes where the manifest says {size:,}"
                    if got != size
                    else "its SHA-256 is not the manifest's"
                )
                damaged += 1
                if damaged >= self.attempts:
                    break
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise BadSampleError(
            f"Cannot fetch shard {url}: {problem}. Check the store, run scripts/verify.py where "
            "the shards were made, and copy the shard there again."
        )


def _is_refusal(error: Exception) -> bool:
    """True where the store answered, and asking again would get the same answer."""
    status = getattr(error, "status", 0)
    return isinstance(error, PermissionError) or (400 <= status < 500 and status not in (408, 429))


def _copy(url: str, descriptor: int, size: int) -> tuple[int, str]:
    """Copy a file into the descriptor; return its length (at most one too many) and SHA-256."""
    digest, place = hashlib.sha256(), 0
    with _open_remote(url) as source:
        while piece := source.read(_PIECE_BYTES):
            if place + len(piece) > size:
                return size + 1, ""
            digest.update(piece)
            os.pwrite(descriptor, piece, place)
            place += len(piece)
    return place, digest.hexdigest()


def _open_remote(url: str) -> Any:
    files, path = fsspec.core.url_to_fs(url)
    protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
    # One stream from beginning to end; what fsspec keeps for seeking would only cost memory.
    if protocol in ("http", "https"):
        return files.open(path, "rb", block_size=0)
    return files.open(path, "rb", **({} if protocol in ("file", "local") else _UNCACHED))


_UNCACHED = {"cache_type": "none"}


def _open_shared(path: Path, size: int) -> int | None:
    """Return a descriptor with a shared lock, None if there is no complete copy."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    facts = os.fstat(descriptor)
    if facts.st_nlink and facts.st_size == size:
        os.utime(descriptor)
        return descriptor
    os.close(descriptor)
    if facts.st_nlink:
        # Cut by hand, or by a file system that lost it in a crash.
        _evict(path)
    return None


def _evict(path: Path) -> bool:
    """Delete a copy unless it is locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(descriptor):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(descriptor: int, path: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _fetch_manifest(url: str) -> bytes:
    try:
        content = b""
        with _open_remote(url) as source:
            # A stream may return less than was asked for before its end.
            while len(content) <= MAX_MANIFEST_BYTES and (piece := source.read(_PIECE_BYTES)):
                content += piece
    except Exception as error:
        raise UserError(
            f"Cannot read {url} ({type(error).__name__}: {error}). Set shards= to the folder that "
            "holds what scripts/prepare.py wrote, and check credentials and endpoint of the store."
        ) from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise UserError(f"{url} is larger than {MAX_MANIFEST_BYTES:,} bytes: not a manifest.")
    return content


def _fetch_index(url: str, path: Path, stated: IndexEntry) -> None:
    if path.is_file() and path.stat().st_size == stated.bytes:
        # Its SHA-256 was compared when it was fetched; opening it checks its two ends again.
        return
    try:
        with atomic_file(path) as handle:
            got, digest = _copy(url, handle.fileno(), stated.bytes)
            if (got, digest) != (stated.bytes, stated.sha256):
                raise UserError(
                    f"{url} is not the index that the manifest states. Copy the set again."
                )
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"Cannot read {url} ({type(error).__name__}: {error}).") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)

"""Keys that stand for records and patients, and the secret that makes them.

A HEEDB file stem holds a 9-digit patient id and dates. Any plain hash of it can be undone by trying
all ids, so keys are HMACs under a secret that stays on the machine that builds the shards.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.private_files import (
    PRIVATE_SUFFIX,
    open_private_file,
    open_private_folder,
)

KEY_LENGTH = 32
"""Hexadecimal digits of a key (128 bits: no collision to be expected among 10^12 records)."""

_SECRET_BYTES = 32
_CHUNK_ROWS = 500_000
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))
"""Of RFC 2104, as tables that `bytes.translate` takes."""


@dataclass(frozen=True, repr=False)
class Secret:
    """The secret under which record and patient keys are made. Its repr never shows it."""

    value: bytes

    @property
    def fingerprint(self) -> str:
        """What manifests may hold: tells secrets apart, reveals nothing of them."""
        return hmac.new(self.value, b"fingerprint", hashlib.sha256).hexdigest()[:16]

    def record_key(self, source: str, record_id: str) -> str:
        """Return 32 hexadecimal digits that stand for one recording."""
        return self._key("record", source, record_id)

    def record_keys(self, source: str, record_ids: pl.Series) -> pl.Series:
        """Return `record_key` of many recordings; null where the id is."""
        return self._keys("record", source, record_ids)

    def patient_keys(self, source: str, patient_ids: pl.Series) -> pl.Series:
        """Return `patient_key` of many patients; null where the id is."""
        return self._keys("patient", source, patient_ids)

    def patient_key(self, source: str, patient_id: str) -> str:
        """Return 32 hexadecimal digits that stand for one (canonical) patient."""
        return self._key("patient", source, patient_id)

    def _key(self, kind: str, source: str, native_id: str) -> str:
        message = "\0".join((kind, source, native_id)).encode()
        return hmac.new(self.value, message, hashlib.sha256).hexdigest()[:KEY_LENGTH]

    def _keys(self, kind: str, source: str, native_ids: pl.Series) -> pl.Series:
        prefix = "\0".join((kind, source, "")).encode()
        block = self.value.ljust(hashlib.sha256().block_size, b"\0")
        # The states before the ids are hashed once; a copy of each costs less than an HMAC object.
        inner = hashlib.sha256(block.translate(_INNER) + prefix)
        outer = hashlib.sha256(block.translate(_OUTER))

        def key(native_id: str | None) -> str | None:
            if native_id is None:
                return None
            digest, result = inner.copy(), outer.copy()
            digest.update(native_id.encode())
            result.update(digest.digest())
            return result.hexdigest()[:KEY_LENGTH]

        slices = (
            native_ids.slice(start, _CHUNK_ROWS).to_list()
            for start in range(0, max(len(native_ids), 1), _CHUNK_ROWS)
        )
        return pl.concat(
            [pl.Series(native_ids.name, map(key, part), dtype=pl.String) for part in slices]
        )


def load_or_create_secret(path: Path | str) -> Secret:
    """Return the secret in `path` (64 hexadecimal digits, mode 600), made there if absent.

    Raises:
        UserError: The file is not a secret, or others may read it.
    """
    path = Path(path)
    if path.parent.suffix == PRIVATE_SUFFIX or not path.parent.exists():
        open_private_folder(path.parent)
    try:
        descriptor = open_private_file(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        return _load(path)
    except OSError as error:
        raise UserError(
            f"Cannot make the secret file {path}: {error.strerror}. "
            "Point private= (or secret=) to a folder that only you can read."
        ) from error
    try:
        with os.fdopen(descriptor, "w") as handle:
            handle.write(secrets.token_hex(_SECRET_BYTES) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    except BaseException:
        path.unlink()  # an empty one would be taken for a damaged secret ever after
        raise
    return _load(path)


def _load(path: Path) -> Secret:
    if not path.is_file():
        raise UserError(
            f"{path} is not a file. Point secret= to a file, or to where one may be made."
        )
    if path.stat().st_mode & 0o077:
        raise UserError(
            f"{path} can be read by others; keys made with it are not private. "
            f"Run: chmod 600 {path}"
        )
    try:
        value = bytes.fromhex(path.read_text().strip())
    except ValueError:
        value = b""
    if len(value) != _SECRET_BYTES:
        raise UserError(
            f"{path} is not a secret of this project (64 hexadecimal digits expected). Restore it "
            "from your backup; with a new one no key would match the shards that exist."
        )
    return Secret(value)

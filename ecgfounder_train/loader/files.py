"""Shard files of a reader, and the error of a sample that cannot be read."""

import os
from typing import Protocol

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet


class BadSampleError(UserError):
    """A sample that cannot be read or is not what the index says."""


class ShardFiles(Protocol):
    """Opens shards for a reader."""

    def open(self, shard: int) -> int:
        """Return a new descriptor of a shard, which the caller closes.

        Raises:
            BadSampleError: The shard cannot be had.
        """

    def is_wanted(self, shard: int) -> bool:
        """Return whether a descriptor should be kept for further reads."""


class LocalFiles:
    """Shards read in place."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def open(self, shard: int) -> int:
        """Return a new descriptor of a shard."""
        path = self.shards.shard_path(shard)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadSampleError(
                f"Cannot open shard {path}: {error.strerror}. Run scripts/verify.py "
                f"shards={self.shards.folder}, then prepare again to rebuild what is missing."
            ) from error

    def is_wanted(self, shard: int) -> bool:
        """Keep every file open."""
        return True

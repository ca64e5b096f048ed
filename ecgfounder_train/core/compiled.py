"""Loops compiled by numba: how they are compiled, and the one that several of them share."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Return the function compiled at its first call, kept on disk where there is a place for it.

    A read-only container without a home has none; numba then refuses to cache, on import. The
    function holds no lock while it runs.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True)(function))


@compiled
def hash_bytes(data: NDArray[np.uint8], first: int, end: int) -> tuple[np.uint64, np.uint64]:
    """Return two 64-bit hashes of the bytes from `first` to `end`: FNV-1a, and another."""
    one, other = np.uint64(0xCBF29CE484222325), np.uint64(0x9E3779B97F4A7C15)
    for place in range(first, end):
        letter = np.uint64(data[place])
        one = (one ^ letter) * np.uint64(0x100000001B3)
        other = (other + letter + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
        other ^= other >> np.uint64(29)
    return one, other

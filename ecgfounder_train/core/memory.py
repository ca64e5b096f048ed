"""What a process gives back to the system, where the C library keeps it by default."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
_THRESHOLD_BYTES = 1 << 20


def return_freed_memory() -> bool:
    """Let glibc return large freed blocks at once; tell whether it could be told.

    By default blocks of up to 32 MiB come from a heap that shrinks only from its end, and each
    thread has a heap of its own: of a catalog of eleven million records that is half a gigabyte of
    the peak. The price, fresh pages for every block above a mebibyte, is for stages that hold few
    and large tables, not for training.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False  # another C library: nothing depends on this
    settings = {
        _M_ARENA_MAX: 2,
        _M_MMAP_THRESHOLD: _THRESHOLD_BYTES,
        _M_TRIM_THRESHOLD: _THRESHOLD_BYTES,
    }
    done = [bool(mallopt(key, value)) for key, value in settings.items()]
    return all(done)

"""Compiled workers on torch's OpenMP threads.

A pool of threads of our own would compete with torch's: OpenMP's threads keep spinning for 5 to
10 ms after each operation, which on two cores takes half of one away. So a worker is called by the
OpenMP library that torch has loaded, on the same threads. Units of work are taken from a counter:
what a unit computes must not depend on who does it, and does not.
"""

# numba reads some of these bodies itself, and gives intrinsics another signature.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-arg"
# mypy: disable-error-code="attr-defined"

import ctypes
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

FIRST_ARGUMENT = 2
"""Where a job's own numbers begin, after the counter and the number of units."""
_MOST_NUMBERS = 64


@intrinsic
def next_unit(typing, job):
    """Return the number of the next unit, in one step for all threads."""

    def generate(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.atomic_rmw("add", data, ir.IntType(64)(1), "seq_cst")

    return types.int64(job), generate


@intrinsic
def _pointer(typing, address):
    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@numba.njit
def floats_at(address):
    """Return the float32 numbers at an address as an array without bounds."""
    return numba.carray(_pointer(address), 1 << 62, np.float32)


@numba.njit
def job_of(pointer):
    """Return the numbers of the job a worker is called with."""
    return numba.carray(pointer, _MOST_NUMBERS)


def worker(function: Callable[[Any], None]) -> Callable[[], int]:
    """Return what gives the address of a compiled worker, compiling it when first asked.

    Args:
        function: Takes a pointer to a job (see `job_of`) and does units by `next_unit` until there
            are no more than `job[1]`. Its machine code is kept on disk where there is a place.
    """

    # numba looks for changes in the worker's own file only: what it is made of goes into the name
    # that its machine code is kept under.
    function.__qualname__ += f"_{_sources()}"

    @functools.cache
    def address() -> int:
        signature = types.void(types.CPointer(types.int64))
        try:
            compiled = numba.cfunc(signature, cache=True)(function)
        except RuntimeError:  # no place for a cache, as in a read-only container
            compiled = numba.cfunc(signature)(function)
        _alive.append(compiled)
        return cast(int, compiled.address)

    return address


@functools.cache
def _sources() -> str:
    here = Path(__file__)
    texts = [here.with_name(name).read_bytes() for name in (here.name, "vector_rows.py")]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:8]


_alive: list[Any] = []


def work(
    address: int, num_units: int, tensors: Sequence[Tensor | None], numbers: Sequence[int]
) -> None:
    """Do all units of a job, with as many threads as torch uses.

    Args:
        address: A worker's.
        num_units: Units of work.
        tensors: Whose addresses `job[FIRST_ARGUMENT:]` holds (0 for None); they are contiguous.
        numbers: What follows them.
    """
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    job = np.array([0, num_units, *addresses, *numbers], np.int64)
    threads = min(torch.get_num_threads(), num_units)
    parallel = _openmp()
    if threads > 1 and parallel is not None:
        parallel(address, job.ctypes.data, threads, 0)
    else:
        ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(job.ctypes.data)


@functools.cache
def _openmp() -> Callable[[int, int, int, int], None] | None:
    """Return `GOMP_parallel`, which LLVM's OpenMP has, too; None where there is neither."""
    for name in ("libgomp.so.1", "libomp.dylib"):
        try:
            found = ctypes.CDLL(name).GOMP_parallel  # torch's, as it is loaded already
        except (OSError, AttributeError):
            continue
        found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.restype = None
        return found  # type: ignore[no-any-return]
    return None

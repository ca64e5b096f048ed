"""Freed memory goes back to the system where the C library can be told so."""

import platform
import subprocess
import sys

import pytest

CODE = """
import sys
import numpy as np
from pathlib import Path
from ecgfounder_train.core.memory import return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "told":
    assert return_freed_memory()
blocks = [np.ones(1 << 21, np.uint8) for _ in range(200)]
keep = blocks[1::2]
before = resident()
del blocks[::2]
print(before - resident())
"""


def test_blocks_freed_between_others_are_returned() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")
    done = subprocess.run(
        [sys.executable, "-c", CODE, "told"], capture_output=True, text=True, check=True
    )
    # A hundred blocks of 2 MiB, each with a neighbour that stays.
    assert int(done.stdout) > 150 << 20

"""NumPy files: `.npy` with one recording (leads, time) or many (record, leads, time); `.npz`.

An `.npz` may say the rest itself: arrays named `fs`, `leads` and `unit` beside the signal. Axes
come in either order. Nothing pickled is ever loaded.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from ecgfounder_train.inference.inputs.reading import (
    InputFormat,
    InputOptions,
    SourceRecord,
    from_array,
    unreadable,
)

_RATE = ("fs", "sampling_rate", "sample_rate", "frequency")
_LEADS = ("leads", "lead_names", "sig_name", "channels")
_UNIT = ("unit", "units")
_SIGNAL = ("signal", "signals", "ecg", "x", "data", "tracings", "p_signal", "arr_0")


def items(path: Path) -> Sequence[str]:
    """Return a number per recording of a file with many, else one empty name."""
    shape = _signal(_open(path)).shape
    return [str(number) for number in range(shape[0])] if len(shape) == 3 else [""]


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return one recording."""
    content = _open(path)
    signal = _signal(content)
    try:
        values = np.asarray(signal[int(item)] if item else signal)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise unreadable(f"numpy cannot read it: {type(error).__name__}") from None
    names, fs, unit = None, None, None
    if isinstance(content, NpzFile):
        leads = _member(content, _LEADS)
        names = [str(name) for name in leads.reshape(-1)] if leads is not None else None
        rate, units = _member(content, _RATE), _member(content, _UNIT)
        if rate is not None and rate.dtype.kind in "iuf":
            fs = float(rate.reshape(-1)[0])
        if units is not None and units.dtype.kind in "US":
            unit = str(units.reshape(-1)[0])
    return from_array(values, options, names=names, fs=fs, unit=unit)


def _open(path: Path) -> NDArray[Any] | NpzFile:
    try:
        # A memory map of a .npy, so that one recording of many costs one read.
        loaded: NDArray[Any] | NpzFile = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(f"numpy cannot read it: {type(error).__name__}") from None
    return loaded


def _signal(content: NDArray[Any] | NpzFile) -> NDArray[Any]:
    if not isinstance(content, NpzFile):
        return content
    found = _member(content, _SIGNAL)
    if found is None or found.ndim not in (1, 2, 3):
        listed = ", ".join(content.files[:5])
        raise unreadable(f"no array of the archive is a signal: {listed or 'it is empty'}")
    return found


def _member(content: NpzFile, names: Sequence[str]) -> NDArray[Any] | None:
    by_name = {name.lower(): name for name in content.files}
    try:
        for name in names:
            if name in by_name:
                return np.asarray(content[by_name[name]])
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise unreadable(f"numpy cannot read it: {type(error).__name__}") from None
    return None


FORMAT = InputFormat(
    "NumPy",
    (".npy", ".npz"),
    lambda head: head.startswith(b"\x93NUMPY") or (head[:4] == b"PK\x03\x04" and b".npy" in head),
    read,
    items,
)

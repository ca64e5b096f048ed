"""HDF5 files: one recording, one data set per recording, or many in one array.

* A data set of three axes (record, time, lead) or (record, lead, time) holds many. One called
  `tracings` of 12 leads and at most 4,096 samples is CODE-15 or CODE-test: 400 Hz, leads I, II,
  III, aVR, aVL, aVF, V1-V6, filled up with zeros on both sides, which are cut off. The published
  descriptions of that set differ in the order of the augmented leads and in the unit, so each
  recording is measured against Goldberger's equations and the usual size of an ECG.
* Other data sets of two axes are one recording each; of one axis, one lead each of one recording,
  named like the lead.
* Attributes `fs`, `leads`, `unit` of the data set or of the file say the rest.
"""

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.inference.inputs.reading import (
    InputFormat,
    InputOptions,
    SourceRecord,
    from_array,
    unreadable,
)
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records.leads import STANDARD_LEADS, canonical_lead

_RATE = ("fs", "sampling_rate", "sample_rate", "sampling_frequency", "frequency")
_LEADS = ("leads", "lead_names", "sig_name", "channels")
_UNIT = ("unit", "units")
_SINGLE_LEADS = "."
_CODE_NAME, _CODE_FS, _CODE_SAMPLES = "tracings", 400.0, 4096
_AUGMENTED = {"aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
_USUAL_SWING = 10**0.5
"""Of a lead within a second: about 1 mV, or 10 in tenths of a millivolt."""
_CLEARLY = 0.5


def items(path: Path) -> Sequence[str]:
    """Return `name` or `name/number` of every recording."""
    with _opened(path) as file:
        names: list[str] = []
        for name, shape in _signals(file).items():
            many = len(shape) == 3
            names.extend([f"{name}/{number}" for number in range(shape[0])] if many else [name])
        if any(len(data.shape) == 1 and data.dtype.kind in "iuf" for data in _leads(file).values()):
            names.append(_SINGLE_LEADS)
        if not names:
            raise unreadable("no data set of the file is a signal")
        # The file's name says enough where it holds one recording.
        return names


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return one recording."""
    with _opened(path) as file:
        try:
            return _read(file, item, options)
        except (OSError, KeyError, IndexError, ValueError) as error:
            raise unreadable(f"h5py cannot read it: {type(error).__name__}") from None


def _read(file: Any, item: str, options: InputOptions) -> SourceRecord:
    if item == _SINGLE_LEADS:
        leads = _leads(file)
        longest = max(data.shape[0] for data in leads.values())
        chosen = {name: data for name, data in leads.items() if data.shape[0] == longest}
        values = np.stack([np.asarray(data) for data in chosen.values()])
        facts = _facts(file, next(iter(chosen.values())))
        return from_array(values, options, names=list(chosen), fs=facts[1], unit=facts[2])
    name, _, number = item.rpartition("/")
    if number.isdigit() and name in file and len(file[name].shape) == 3:
        data = file[name]
        values = np.asarray(data[int(number)])
        # The data set is called `tracings` wherever it lies.
        if name.split("/")[-1] == _CODE_NAME and _is_code(data.shape):
            return _code_tracing(values, options)
    else:
        data = file[item]
        values = np.asarray(data)
    names, fs, unit = _facts(file, data)
    return from_array(values, options, names=names, fs=fs, unit=unit)


def _opened(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise unreadable(f"h5py cannot open it: {type(error).__name__}") from None


def _signals(file: Any) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the numeric data sets of two or three axes, by full name."""
    found: dict[str, tuple[int, ...]] = {}

    def visit(name: str, node: Any) -> None:
        shape = getattr(node, "shape", None)
        if shape is not None and len(shape) in (2, 3) and node.dtype.kind in "iuf":
            found[name] = tuple(shape)

    file.visititems(visit)
    return found


def _leads(file: Any) -> dict[str, Any]:
    """Return the data sets of one axis that are called like a lead."""
    found: dict[str, Any] = {}

    def visit(name: str, node: Any) -> None:
        shape = getattr(node, "shape", None)
        lead = canonical_lead(name.split("/")[-1])
        if shape is not None and len(shape) == 1 and lead in STANDARD_LEADS:
            found.setdefault(lead, node)

    file.visititems(visit)
    return found


def _facts(file: Any, data: Any) -> tuple[list[str] | None, float | None, str | None]:
    """Return lead names, rate and unit from the attributes, the data set's own first."""
    places = (file, data)
    attributes = {key.lower(): value for place in places for key, value in place.attrs.items()}
    leads = next((attributes[key] for key in _LEADS if key in attributes), None)
    rate = next((attributes[key] for key in _RATE if key in attributes), None)
    unit = next((attributes[key] for key in _UNIT if key in attributes), None)
    if isinstance(leads, str | bytes):
        leads = _text(leads).split(",")
    return (
        [_text(name).strip() for name in leads] if leads is not None else None,
        float(np.asarray(rate).reshape(-1)[0]) if rate is not None else None,
        _text(unit) if isinstance(unit, str | bytes) else None,
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _is_code(shape: tuple[int, ...]) -> bool:
    return shape[2] == len(STANDARD_LEADS) and shape[1] <= _CODE_SAMPLES


def _code_tracing(values: NDArray[Any], options: InputOptions) -> SourceRecord:
    filled = np.flatnonzero(values.any(axis=1))
    if not len(filled):
        raise RejectedRecordError(RejectReason.ALL_ZERO, "nothing but zeros")
    values = values[filled[0] : filled[-1] + 1].astype(np.float32)
    remarks = []
    scale = 1.0
    if options.unit is None:
        second = int(_CODE_FS)
        whole = max(len(values) // second, 1) * second
        seconds = [values[start : start + second] for start in range(0, whole, second)]
        swing = float(np.median([np.ptp(part, axis=0) for part in seconds]))
        scale = 1.0 if swing < _USUAL_SWING else 0.1
        size = "mV" if scale == 1.0 else "tenths of a millivolt"
        detail = f"CODE describes its unit in two ways; by their size the numbers are {size}"
        remarks.append(Remark(WarningCode.UNIT_ASSUMED, detail))
    names = options.leads or _code_leads(values)
    return from_array(
        values.T * np.float32(scale),
        options,
        names=names,
        fs=_CODE_FS,
        unit="mV",
        remarks=remarks,
    )


def _code_leads(values: NDArray[np.float32]) -> tuple[str, ...]:
    one, two = values[:, 0], values[:, 1]
    unexplained = {
        order: float(
            sum(
                np.abs(values[:, 3 + column] - a * one - b * two).sum()
                for column, (a, b) in enumerate(_AUGMENTED[name] for name in order)
            )
        )
        for order in permutations(_AUGMENTED)
    }
    first, second = sorted(unexplained, key=unexplained.__getitem__)[:2]
    clear = unexplained[first] < _CLEARLY * unexplained[second]
    return ("I", "II", "III", *(first if clear else _AUGMENTED), "V1", "V2", "V3", "V4", "V5", "V6")


FORMAT = InputFormat(
    "HDF5",
    (".h5", ".hdf5", ".hdf"),
    lambda head: head.startswith(b"\x89HDF\r\n\x1a\n"),
    read,
    items,
)

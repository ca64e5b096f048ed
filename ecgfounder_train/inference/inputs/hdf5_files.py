"""HDF5 files: every recording in them, whichever way they are laid out.

* A data set of three axes (record, time, lead) or (record, lead, time) holds many. One called
  `tracings` of 12 leads and at most 4,096 samples is CODE-15 or CODE-test: 400 Hz, leads I, II,
  III, aVR, aVL, aVF, V1-V6, filled up with zeros on both sides, which are cut off. The published
  descriptions of that set differ in the order of the augmented leads and in the unit, so each
  recording is measured against Goldberger's equations and the usual size of an ECG.
* Other data sets of two axes are one recording each. Data sets of one axis that are named like
  leads are one recording **per group**: leads of different groups are different exams.
* Rate, leads and unit are attributes or small data sets beside the signal (`fs`, `leads`, `unit`);
  the nearest one counts: the data set's own, then those of its group, up to the file's.

Only what the file itself stores is read: external storage, virtual data sets and links to other
places are refused, and sizes are checked before reading.
"""

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.untrusted import (
    MAX_RECORDS_PER_FILE,
    check_hdf5_dataset,
    check_num_records,
    hdf5_datasets,
)
from ecgfounder_train.inference.inputs.reading import (
    LEAD_NAMES,
    MAX_LEADS,
    MAX_VALUES_IN_MEMORY,
    RATE_NAMES,
    UNIT_NAMES,
    InputFormat,
    InputOptions,
    SourceRecord,
    from_array,
    left_out,
    number_in,
    texts_in,
    too_large,
    unreadable,
)
from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records.leads import STANDARD_LEADS, canonical_lead

_ROOT = "."
_CODE_NAME, _CODE_FS, _CODE_SAMPLES = "tracings", 400.0, 4096
_AUGMENTED = {"aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
_USUAL_SWING = 10**0.5
"""Of a lead within a second: about 1 mV, or 10 in tenths of a millivolt."""
_CLEARLY = 0.5
_MAX_CHUNK_VALUES = 1 << 26


def items(path: Path) -> Sequence[str]:
    """Return `name` or `name/number` of every recording, and a group's name per group of leads."""
    with _opened(path) as file:
        content = _Content(file)
        names: list[str] = []
        for name, data in content.signals.items():
            if len(data.shape) == 2:
                names.append(name)
            else:
                check_num_records(len(names) + data.shape[0])
                names.extend(f"{name}/{number}" for number in range(data.shape[0]))
        names.extend(content.groups)
        if not names:
            raise unreadable(content.nothing_found())
        return names


def read(path: Path, item: str, options: InputOptions) -> SourceRecord:
    """Return one recording."""
    with _opened(path) as file:
        content = _Content(file)
        if item in content.groups:
            return _read_group(content, item, options)
        name, _, number = item.rpartition("/")
        place = None
        if number.isdigit() and name in content.signals and len(content.signals[name].shape) == 3:
            place = int(number)
        elif item in content.signals:
            name = item
        else:
            raise unreadable("the recording that was asked for is not in the file")
        data = content.signals[name]
        values = _values(data, place)
        # CODE's data set is called `tracings`, whichever group it is in.
        if place is not None and name.split("/")[-1] == _CODE_NAME and _is_code(data.shape):
            return _code_tracing(values, options, *_metadata(content, name, place))
        names, fs, units = _metadata(content, name, place)
        return from_array(values, options, names=names, fs=fs, unit=units)


def _read_group(content: "_Content", item: str, options: InputOptions) -> SourceRecord:
    leads = content.groups[item]
    # The length most leads have; a lead of another length is named, never stretched or cut.
    lengths = [data.shape[0] for _, data in leads.values()]
    length = max(set(lengths), key=lambda size: (lengths.count(size), size))
    chosen = {lead: entry for lead, entry in leads.items() if entry[1].shape[0] == length}
    other = [
        f"lead {lead} of {data.shape[0]} samples (the others have {length})"
        for lead, (_, data) in leads.items()
        if lead not in chosen
    ]
    values = np.stack([_values(data, None) for _, data in chosen.values()])
    stated = [_metadata(content, name, None) for name, _ in chosen.values()]
    rates = {fs for _, fs, _ in stated}
    if len(rates) > 1:
        raise RejectedRecordError(
            RejectReason.BAD_SAMPLING_RATE, "its leads have different sampling rates"
        )
    units = [unit[0] if unit else None for _, _, unit in stated]
    return from_array(
        values,
        options,
        names=list(chosen),
        fs=rates.pop(),
        unit=None if not any(units) else units,
        remarks=left_out(other),
    )


def _opened(path: Path) -> Any:
    with needs("formats", "An HDF5 file"):
        import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        raise unreadable(f"h5py cannot open it: {type(error).__name__}") from None


class _Content:
    """What a file holds: its signals, its groups of single leads, and what was refused."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.signals: dict[str, Any] = {}
        self.groups: dict[str, dict[str, tuple[str, Any]]] = {}
        self.others: list[str] = []
        for name, data in hdf5_datasets(file):
            if data.external or data.is_virtual:
                raise unreadable("a data set is stored in another file, which is refused")
            base = name.split("/")[-1]
            if data.shape is None or base.lower() in {*RATE_NAMES, *LEAD_NAMES, *UNIT_NAMES}:
                continue
            if data.dtype.kind in "iuf" and len(data.shape) in (2, 3) and math.prod(data.shape):
                self.signals[name] = data
            elif (place := _lead_of(name)) is not None and _is_lead(data):
                group, lead = place
                self.groups.setdefault(group, {}).setdefault(lead, (name, data))
            else:
                self.others.append(f"{base} {data.shape} {data.dtype}")

    def nothing_found(self) -> str:
        """Return why the file is not a recording."""
        import h5py

        if any(
            not isinstance(self.file.get(name, getlink=True), h5py.HardLink) for name in self.file
        ):
            return "the file refers to data elsewhere by links, which are refused"
        there = ", ".join(self.others[:5])
        return "no data set of the file is a signal" + (f" ({there})" if there else "")


def _is_lead(data: Any) -> bool:
    return data.dtype.kind in "iuf" and len(data.shape) == 1 and data.shape[0] > 1


def _lead_of(name: str) -> tuple[str, str] | None:
    """Return group and lead of a data set named like a lead, or inside a group named like one."""
    parts = name.split("/")
    for depth in (1, 2):
        if len(parts) >= depth and (lead := canonical_lead(parts[-depth])) in STANDARD_LEADS:
            return "/".join(parts[:-depth]) or _ROOT, lead
    return None


def _values(data: Any, place: int | None) -> NDArray[Any]:
    """Return a data set's numbers, or those of one record, after a check of their size."""
    shape = data.shape if place is None else data.shape[1:]
    count = math.prod(shape)
    if count > MAX_VALUES_IN_MEMORY:
        raise too_large(f"{count} values")
    if place is None:
        check_hdf5_dataset(data)
    if data.chunks is not None and math.prod(data.chunks) > max(_MAX_CHUNK_VALUES, count):
        raise too_large(f"chunks of {math.prod(data.chunks)} values")
    if place is not None and not 0 <= place < data.shape[0]:
        raise unreadable(f"record {place} of {data.shape[0]}")
    return np.asarray(data[place] if place is not None else data[()])


def _metadata(
    content: _Content, name: str, place: int | None
) -> tuple[list[str] | None, float | None, list[str] | None]:
    """Return lead names, rate and units: the data set's own, else those of the groups above it.

    An array with one rate per record of a data set of three axes counts by its place.
    """
    parts = name.split("/")
    places = [content.file[name]]
    places += [
        content.file["/".join(parts[:depth]) or "/"] for depth in range(len(parts) - 1, -1, -1)
    ]
    stated: list[dict[str, Any]] = []
    for node in places:
        stated.append({str(key).lower(): node.attrs[key] for key in _readable(node)})
        if node is not places[0]:
            stated.append(_beside(node))

    def first(names: Sequence[str]) -> Any:
        return next((found[key] for found in stated for key in names if key in found), None)

    rate = first(RATE_NAMES)
    if place is not None and rate is not None and np.size(rate) > place and np.size(rate) > 1:
        rate = np.reshape(rate, -1)[place]
    leads = first(LEAD_NAMES)
    units = first(UNIT_NAMES)
    return (
        texts_in(leads) if leads is not None else None,
        number_in(rate) if rate is not None else None,
        texts_in(units) if units is not None else None,
    )


def _readable(node: Any) -> list[str]:
    """Return the names of the attributes that hold a rate, leads or units."""
    wanted = {*RATE_NAMES, *LEAD_NAMES, *UNIT_NAMES}
    return [key for key in node.attrs if str(key).lower() in wanted]


def _beside(group: Any) -> dict[str, Any]:
    """Return the small data sets of a group that are called like a rate, leads or units."""
    import h5py

    found: dict[str, Any] = {}
    for names in (RATE_NAMES, LEAD_NAMES, UNIT_NAMES):
        for key in names:
            for spelled in (key, key.upper(), key.capitalize()):
                if not isinstance(group.get(spelled, getlink=True, default=None), h5py.HardLink):
                    continue
                node = group[spelled]
                if isinstance(node, h5py.Dataset) and node.shape is not None:
                    limit = MAX_RECORDS_PER_FILE if names is RATE_NAMES else MAX_LEADS
                    if not (node.external or node.is_virtual) and node.size <= limit:
                        found[key] = node[()]
    return found


def _is_code(shape: tuple[int, ...]) -> bool:
    return shape[2] == len(STANDARD_LEADS) and shape[1] <= _CODE_SAMPLES


def _code_tracing(
    values: NDArray[Any],
    options: InputOptions,
    names: list[str] | None,
    fs: float | None,
    units: list[str] | None,
) -> SourceRecord:
    """Return a recording of CODE; what the file or the user states overrides its conventions."""
    filled = np.flatnonzero(values.any(axis=1))
    if not len(filled):
        raise RejectedRecordError(RejectReason.ALL_ZERO, "nothing but zeros")
    is_code_length = len(values) == _CODE_SAMPLES
    values = values[filled[0] : filled[-1] + 1].astype(np.float32)
    remarks = []
    if fs is None:
        fs = options.fs or _CODE_FS
        if options.fs is None and not is_code_length:
            detail = f"the file does not say its sampling rate; taken as CODE's {_CODE_FS:g} Hz"
            remarks.append(Remark(WarningCode.RATE_ASSUMED, detail))
    scale = 1.0
    if options.unit is None and units is None:
        second = int(_CODE_FS)
        whole = max(len(values) // second, 1) * second
        seconds = [values[start : start + second] for start in range(0, whole, second)]
        swing = float(np.median([np.ptp(part, axis=0) for part in seconds]))
        scale = 1.0 if swing < _USUAL_SWING else 0.1
        size = "mV" if scale == 1.0 else "tenths of a millivolt"
        detail = f"CODE describes its unit in two ways; by their size the numbers are {size}"
        remarks.append(Remark(WarningCode.UNIT_ASSUMED, detail))
    return from_array(
        values.T * np.float32(scale),
        options,
        names=options.leads or names or _code_leads(values),
        fs=fs,
        unit=units or "mV",
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

"""Leakage audit: patients and recordings that are in two splits of a data set, or in two sets.

Three questions, from cheap to dear. Patients and identical signals (checksum of the stored data)
are answered from the index. Near-identical signals are found by a hash of the waveform between 3
and 15 Hz, which amplitude, offset, sampling rate and every signal profile of configs/signal leave
nearly alone: random hyperplanes (signs of 1,024 projections) cut into bands; records that agree in
a whole band are compared in all bits, and those that are close there by the correlation of their
signals, at lags up to 20 ms.

Memory: 130 bytes per record on disk and about 60 in memory (10 million records: 0.6 GB).

Source: Charikar 2002, Similarity estimation techniques from rounding algorithms (hyperplanes);
Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3 (bands).
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import windows

from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.records.leads import STANDARD_LEADS
from ecgfounder_train.shards.shard_set import ShardSet

Value = TypeVar("Value")

KINDS = ("patient", "identical", "near_identical")
COLUMNS = ("kind", "record_key", "part", "other_record_key", "other_part", "correlation")

_BAND_HZ = (3.0, 15.0)
_NUM_BITS = 1024
# Two signals of correlation r differ in acos(r) / pi of the bits: 0.85 gives 0.18, 0.5 gives 0.33.
_MAX_DIFFERENT_BITS = 215
_SILENCE_UV = 1.0  # root mean square from 3 to 15 Hz; rounding to microvolts makes 0.2
_MAX_LAG_S = 0.02
_LAG_STEP_S = 0.002
_SAMPLES_AT_ONCE = 64
_PAIRS_AT_ONCE = 1 << 18
# Equal hashes of more records than this are taken for an artefact (silence), and counted.
_MAX_CROWD = 256
_SHOWN = 20

# Whether a pair of groups is a leak; the groups are train, val, test and the other data set.
_LEAKS = np.array([[0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]], bool)
_OTHER = len(SPLITS)


@dataclass(frozen=True)
class Leak:
    """Two records that must not be in different splits; keys only."""

    kind: str
    record_key: str
    part: str
    other_record_key: str
    other_part: str
    correlation: float | None = None
    """Of the signals, for near-identical ones."""


@dataclass
class AuditReport:
    """What the audit compared, and the pairs it found."""

    num_windows: int = 0
    leaks: list[Leak] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if no pair was found."""
        return not self.leaks

    def counts(self) -> dict[str, int]:
        """Return the number of pairs by kind, those of no pair included."""
        found = Counter(leak.kind for leak in self.leaks)
        return {kind: found[kind] for kind in KINDS}

    def write(self, path: Path | str) -> None:
        """Write the pairs as CSV."""
        rows = [[getattr(leak, name) for name in COLUMNS] for leak in self.leaks]
        columns = {**dict.fromkeys(COLUMNS, pl.String), "correlation": pl.Float64}
        with atomic_file(path) as handle:
            write_frame(pl.DataFrame(rows, schema=columns, orient="row"), handle)

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in self.counts().items())
        lines = [f"{self.num_windows:,} windows compared; pairs across parts: {counts}."]
        lines += self.notes
        lines += [
            f"{leak.kind}: {leak.record_key} ({leak.part}) and {leak.other_record_key} "
            f"({leak.other_part})"
            + ("" if leak.correlation is None else f", correlation {leak.correlation:.3f}")
            for leak in self.leaks[:_SHOWN]
        ]
        if len(self.leaks) > _SHOWN:
            lines.append(f"... and {len(self.leaks) - _SHOWN:,} more; pairs=FILE.csv lists all.")
        if self.leaks:
            lines.append(
                "Leave these records or patients out and prepare again, or split by a list of "
                "your own that keeps each pair together."
            )
        return "\n".join(lines)


def audit(
    folder: Path | str,
    against: Path | str | None = None,
    min_correlation: float = 0.95,
    scratch: Path | str | None = None,
) -> AuditReport:
    """Return the leaks between the parts of a folder of shards, and into another data set.

    Args:
        folder: What prepare wrote.
        against: Shards of an external test set; its records must not be in the train or val part.
            May have another signal profile, rate, or fewer leads.
        min_correlation: From which correlation on two signals count as near-identical.
        scratch: Folder for the hashes (128 bytes per window); the system's by default.

    Raises:
        UserError: A folder has no complete shard set, or the two share no lead.
    """
    is_number = isinstance(min_correlation, int | float)
    if not is_number or not 0.8 <= min_correlation <= 1:
        raise UserError(
            f"min_correlation={min_correlation} is not between 0.8 and 1: the hash finds nothing "
            "below, however it is set."
        )
    sets = [ShardSet.open(folder)] + ([ShardSet.open(against)] if against is not None else [])
    rows = _Rows(sets)
    report = AuditReport(num_windows=len(rows.group))
    report.leaks += _shared_patients(sets, rows, report.notes)
    report.leaks += [
        _leak("identical", rows, pair) for pair in _identical(sets, rows, report.notes)
    ]
    known = {
        (leak.record_key, leak.other_record_key)
        for leak in report.leaks
        if leak.kind == "identical"
    }
    for pair, value in _near_identical(rows, min_correlation, scratch, report.notes).items():
        leak = _leak("near_identical", rows, pair, value)
        if (leak.record_key, leak.other_record_key) not in known:
            report.leaks.append(leak)
    return report


class _Rows:
    """The windows of all sets, one after the other."""

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        self.sets = sets
        self.starts = np.cumsum([0, *(len(shards.index) for shards in sets)])
        self.group = np.concatenate(
            [
                np.array(shards.index["split"]) if not number else np.full(len(shards.index), 3)
                for number, shards in enumerate(sets)
            ]
        ).astype(np.uint8)
        self.leads = tuple(
            lead for lead in STANDARD_LEADS if all(lead in shards.manifest.leads for shards in sets)
        )
        if not self.leads:
            raise UserError("The two sets share no lead, so their signals cannot be compared.")
        self.duration_s = min(shards.manifest.num_samples / shards.manifest.fs for shards in sets)
        self.spectra = [_Spectrum(shards, self.leads, self.duration_s) for shards in sets]

    def place(self, row: int) -> tuple[int, int]:
        """Return the number of the set, and the row there."""
        number = int(np.searchsorted(self.starts, row, side="right")) - 1
        return number, int(row - self.starts[number])

    def part(self, row: int) -> str:
        """Return the display name of the split that the row is in."""
        return "other set" if self.group[row] == _OTHER else SPLITS[self.group[row]]

    def record_key(self, row: int) -> str:
        """Return the key of the row's record."""
        number, place = self.place(row)
        return str(bytes(self.sets[number].index[place]["record_key"]).decode())

    def ecg(self, row: int) -> tuple["_Spectrum", NDArray[np.int16]]:
        """Return a row's signal, read and checked, and what takes its spectrum."""
        number, place = self.place(row)
        return self.spectra[number], self.sets[number].read_sample(place).ecg


class _Spectrum:
    """The part of a window's spectrum that is compared: fixed frequencies at any sampling rate."""

    def __init__(self, shards: ShardSet, leads: Sequence[str], duration_s: float) -> None:
        self.rows = [shards.manifest.leads.index(lead) for lead in leads]
        self.num_samples = round(duration_s * shards.manifest.fs)
        # The ends are faded, so that the step from the last sample to the first adds no spectrum.
        self.fade = windows.tukey(self.num_samples, 0.1).astype(np.float32)
        top = min(_BAND_HZ[1], 0.45 * shards.manifest.fs)
        self.bins = slice(round(_BAND_HZ[0] * duration_s), round(top * duration_s))
        self.hz = np.arange(self.bins.start, self.bins.stop) / duration_s
        # No set of weights for which Einthoven's I + III = II or Goldberger's leads cancel out.
        weights = np.random.default_rng(0).uniform(0.5, 1.5, 12) * (-1.0) ** np.arange(12)
        self.weights = weights[[STANDARD_LEADS.index(lead) for lead in leads]].astype(np.float32)

    def of_leads(self, ecg: NDArray[np.int16]) -> NDArray[np.complex64]:
        """Return the spectra of the compared leads: (..., num_leads, num_bins)."""
        chosen = ecg[..., self.rows, : self.num_samples].astype(np.float32) * self.fade
        spectrum: NDArray[np.complex64] = fft.rfft(chosen, axis=-1)[..., self.bins]
        return spectrum

    def of_mixture(self, ecg: NDArray[np.int16]) -> NDArray[np.float32]:
        """Return one unit vector per window, of a weighted sum of its leads; 0 for silence.

        Shape: ecg (B, L, T); returns (B, 2 x bins).
        """
        chosen = ecg[:, self.rows, : self.num_samples].astype(np.float32)
        mixture = np.matmul(self.weights, chosen) * self.fade
        spectrum = fft.rfft(mixture, axis=-1)[:, self.bins]
        vectors = np.concatenate([spectrum.real, spectrum.imag], axis=1)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        silent = norm < _SILENCE_UV * self.num_samples / np.sqrt(2)
        unit: NDArray[np.float32] = np.where(silent, 0, vectors / np.maximum(norm, 1e-9))
        return unit


def _shared_patients(sets: Sequence[ShardSet], rows: _Rows, notes: list[str]) -> list[Leak]:
    """Return one pair per patient and pair of splits; blank patients are left out."""
    secrets = {shards.manifest.fingerprints["secret"] for shards in sets}
    if len(secrets) > 1:
        notes.append(
            "The sets' keys were made with different secrets: patients cannot be compared between "
            "them, only within."
        )
        sets = sets[:1]
    keys = np.concatenate([np.array(shards.index["patient_key"]) for shards in sets])
    blank = keys == b""
    if blank.any():
        notes.append(f"{int(blank.sum()):,} windows name no patient; only their signals count.")
    named = np.flatnonzero(~blank)
    numbers = np.unique(_mixed(keys[named]), return_inverse=True)[1]
    codes, where = np.unique(numbers * 4 + rows.group[named], return_index=True)
    repeated = np.flatnonzero(codes[1:] // 4 == codes[:-1] // 4)
    leaks = []
    places: dict[int, int] = {}
    for at in np.union1d(repeated, repeated + 1).tolist():
        number, part = divmod(int(codes[at]), 4)
        place = int(named[where[at]])
        for other_part in range(part):
            other = places.get(number * 4 + other_part)
            if other is not None and _LEAKS[other_part, part]:
                leaks.append(_leak("patient", rows, (other, place)))
        places[number * 4 + part] = place
    return leaks


def _mixed(keys: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """Return a number per key; sorting ten million keys themselves would take a gigabyte."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(len(keys), -1)
    mixed = np.zeros(len(keys), np.uint64)
    for column in words.T:
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _identical(
    sets: Sequence[ShardSet], rows: _Rows, notes: list[str]
) -> dict[tuple[int, int], None]:
    """Return the pairs of windows with the same stored bytes."""
    if len({shards.manifest.fingerprints["signal_build"] for shards in sets}) > 1:
        notes.append(
            "The sets have different signal profiles: equal recordings count as near_identical."
        )
    checksums = np.concatenate([np.array(shards.index["xxh3"]) for shards in sets])
    found: dict[tuple[int, int], None] = {}
    for a, b in _equal_pairs(checksums, rows.group, notes, "checksum"):
        found.update(dict.fromkeys(zip(a.tolist(), b.tolist(), strict=True)))
    return _once_per_record(found, rows)


def _near_identical(
    rows: _Rows, min_correlation: float, scratch: Path | str | None, notes: list[str]
) -> dict[tuple[int, int], float]:
    """Return the pairs of windows whose signals correlate, with the correlation."""
    total = len(rows.group)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="audit-") as folder:
        shape = (total, _NUM_BITS // 8)
        hashes = np.memmap(Path(folder) / "hashes", np.uint8, "w+", shape=shape)
        silent = _hash_all(rows, hashes)
        if silent.any():
            notes.append(f"{int(silent.sum()):,} windows hold no signal from 3 to 15 Hz.")
        audible = np.flatnonzero(~silent)
        # Wider bands for more records, so that chance leaves about as many candidates.
        band_bytes = 2 if total < 300_000 else 3 if total < 3_000_000 else 4
        candidates = np.empty(0, np.int64)
        for start in range(0, shape[1] - band_bytes + 1, band_bytes):
            band = np.zeros(len(audible), np.uint32)
            for byte in range(band_bytes):
                band = band << np.uint32(8) | hashes[audible, start + byte]
            pieces = [candidates]
            for a, b in _equal_pairs(band, rows.group[audible], notes, "hash"):
                for at in range(0, len(a), _PAIRS_AT_ONCE):
                    first, second = (audible[side[at : at + _PAIRS_AT_ONCE]] for side in (a, b))
                    different = np.bitwise_count(hashes[first] ^ hashes[second]).sum(axis=1)
                    close = different <= _MAX_DIFFERENT_BITS
                    pieces.append(first[close] * total + second[close])
            candidates = np.unique(np.concatenate(pieces))
        del hashes
    near: dict[tuple[int, int], float] = {}
    for code in candidates.tolist():
        pair = (code // total, code % total)
        if (value := _correlation(rows, *pair)) >= min_correlation:
            near[pair] = value
    return _once_per_record(near, rows)


def _hash_all(rows: _Rows, hashes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Fill the hash of every window and return which are silent."""
    silent = np.zeros(len(hashes), bool)
    num_features = 2 * min(len(spectrum.hz) for spectrum in rows.spectra)
    planes = np.random.default_rng(1).standard_normal((num_features, _NUM_BITS), np.float32)
    with ProgressMeter("Hashing signals", len(hashes), "windows") as meter:
        row = 0
        for shards, spectrum in zip(rows.sets, rows.spectra, strict=True):
            for ecg in _windows(shards):
                vectors = spectrum.of_mixture(ecg)
                here = slice(row, row + len(ecg))
                hashes[here] = np.packbits(vectors @ planes > 0, axis=1)
                silent[here] = ~vectors.any(axis=1)
                row += len(ecg)
                meter.update(row)
    return silent


def _windows(shards: ShardSet) -> Iterator[NDArray[np.int16]]:
    """Yield all signals in the order of the index, a few at a time: (B, L, T)."""
    layout = shards.layout
    part, size = layout.ecg, layout.block_bytes
    for number, entry in enumerate(shards.manifest.shards):
        descriptor = os.open(shards.shard_path(number), os.O_RDONLY)
        try:
            for first, stop in pairwise(
                [*range(0, entry.num_samples, _SAMPLES_AT_ONCE), entry.num_samples]
            ):
                content = os.pread(descriptor, (stop - first) * size, first * size)
                if len(content) != (stop - first) * size:
                    raise UserError(f"{shards.shard_path(number)} is cut. Run verify.py on it.")
                blocks = np.frombuffer(content, np.uint8).reshape(-1, size)
                data = blocks[:, part.offset : part.offset + part.num_bytes]
                yield np.ascontiguousarray(data).view(part.dtype).reshape(-1, *part.shape)
        finally:
            os.close(descriptor)


def _equal_pairs(
    values: NDArray[np.unsignedinteger],
    group: NDArray[np.uint8],
    notes: list[str],
    what: str,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs (a, b) of places with equal values whose groups make a leak, a < b."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    left = np.arange(len(order))
    for step in range(1, _MAX_CROWD):
        left = left[left + step < len(order)]
        left = left[ordered[left] == ordered[left + step]]
        if not len(left):
            return
        a, b = order[left], order[left + step]
        leaks = _LEAKS[group[a], group[b]]
        yield a[leaks], b[leaks]
    notes.append(
        f"{len(left):,} windows share their {what} with {_MAX_CROWD} others or more; not all of "
        "these were compared with each other."
    )


def _correlation(rows: _Rows, row: int, other_row: int) -> float:
    """Return the correlation of two windows over all common leads, at the best small lag."""
    (spectrum, ecg), (other_spectrum, other_ecg) = rows.ecg(row), rows.ecg(other_row)
    a, b = spectrum.of_leads(ecg), other_spectrum.of_leads(other_ecg)
    num_bins = min(a.shape[1], b.shape[1])
    a, b = a[:, :num_bins], b[:, :num_bins]
    energy = np.sqrt((np.abs(a) ** 2).sum() * (np.abs(b) ** 2).sum())
    cross = (a * b.conj()).sum(axis=0)
    lags_s = np.arange(-_MAX_LAG_S, _MAX_LAG_S + _LAG_STEP_S / 2, _LAG_STEP_S)
    turned = np.exp(2j * np.pi * lags_s[:, None] * spectrum.hz[:num_bins])
    return float((turned @ cross).real.max() / max(energy, 1e-9))


def _once_per_record(
    pairs: dict[tuple[int, int], Value], rows: _Rows
) -> dict[tuple[int, int], Value]:
    """Return the first pair of windows of each pair of records."""
    kept = {}
    seen = set()
    for (a, b), value in pairs.items():
        keys = (rows.record_key(a), rows.part(a), rows.record_key(b), rows.part(b))
        if keys not in seen:
            seen.add(keys)
            kept[a, b] = value
    return kept


def _leak(kind: str, rows: _Rows, pair: tuple[int, int], correlation: float | None = None) -> Leak:
    a, b = pair
    value = None if correlation is None else round(correlation, 4)
    return Leak(kind, rows.record_key(a), rows.part(a), rows.record_key(b), rows.part(b), value)

"""Verification: shards are re-read and compared with manifest, index and ledger.

The tar is parsed strictly (a link, an absolute path or an unexpected member is a finding), each
index row is recomputed from its sample, and totals and fingerprints of the manifest are recomputed.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import PARTIAL_MARK, sha256_file
from ecgfounder_train.core.private_files import private_folder
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.records.profiles import SignalProfile
from ecgfounder_train.shards.index import INDEX_NAME, index_row, open_index
from ecgfounder_train.shards.ledger import REJECTS_NAME
from ecgfounder_train.shards.manifest import MANIFEST_NAME, REPORT_NAME, Manifest, read_manifest
from ecgfounder_train.shards.sample import TAR_END, BadTarError, SampleLayout

_FINDINGS_PER_SHARD = 5
_HASH_BYTES = 1 << 22


@dataclass
class VerifyReport:
    """What was read and what was wrong with it."""

    findings: list[tuple[str, str]] = field(default_factory=list)
    """File and what is the matter with it."""
    num_shards: int = 0
    num_samples: int = 0
    """Samples re-read."""

    @property
    def ok(self) -> bool:
        """True if nothing was found."""
        return not self.findings

    def add(self, file: str, message: str) -> None:
        """Note a finding."""
        self.findings.append((file, message))

    def __str__(self) -> str:
        read = f"{self.num_samples:,} samples of {self.num_shards:,} shards re-read"
        if self.ok:
            return f"{read}: all as stated in the manifest."
        lines = [f"{file}: {message}" for file, message in self.findings]
        return "\n".join(
            [
                f"{read}: {len(lines)} finding{'s' if len(lines) > 1 else ''}.",
                *lines,
                "Delete the files named and run prepare again with the same arguments: it makes "
                "what is missing.",
            ]
        )


def verify(
    folder: Path | str, sample: int | None = None, seed: int = 0, private: Path | str | None = None
) -> VerifyReport:
    """Return what is wrong with a folder of shards.

    Args:
        folder: What prepare wrote.
        sample: Re-read only so many samples, drawn from all shards, and no whole-file checksums;
            None reads every byte.
        seed: Draws the samples.
        private: Where the ledger is; ``<folder>.private`` by default, left out if absent.

    Raises:
        UserError: There is no such folder, or `sample` or `seed` is not such a number.
    """
    for key, value in (("sample", sample), ("seed", seed)):
        if value is not None and (type(value) is not int or value < 0):
            raise UserError(f"{key}={value} must be a whole number, 0 or more.")
    folder = Path(folder)
    report = VerifyReport()
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        if not folder.is_dir():
            raise
        report.add(MANIFEST_NAME, str(error))
        return report
    _check_manifest(manifest, report)
    _check_folder(folder, manifest, report)
    ledger = (Path(private) if private is not None else private_folder(folder)) / REJECTS_NAME
    if ledger.exists():
        _check_ledger(ledger, manifest, report)
    try:
        index = open_index(folder / INDEX_NAME, len(manifest.labels))
    except UserError as error:
        report.add(INDEX_NAME, str(error))
        return report
    if sample is None and sha256_file(folder / INDEX_NAME) != manifest.index.sha256:
        report.add(INDEX_NAME, "its SHA-256 is not the manifest's: changed, or of other shards")
    if not _check_index(index, manifest, report):
        return report
    _check_shards(folder, manifest, index, sample, seed, report)
    return report


def _check_manifest(manifest: Manifest, report: VerifyReport) -> None:
    if problem := manifest.totals.problem():
        report.add(MANIFEST_NAME, problem)
    windows = sum(entry.num_samples for entry in manifest.shards)
    if windows != manifest.totals.windows:
        report.add(
            MANIFEST_NAME,
            f"its shards hold {windows} samples together, its totals say {manifest.totals.windows}",
        )
    if manifest.increments:
        for name, total in (
            ("written", manifest.totals.written),
            ("windows", windows),
            ("shards", len(manifest.shards)),
        ):
            counted = sum(getattr(entry, name) for entry in manifest.increments)
            if counted != total:
                report.add(MANIFEST_NAME, f"its increments have {counted} {name}, not {total}")
    try:
        profile = SignalProfile.from_config(manifest.signal)
    except (ValueError, TypeError, AttributeError, KeyError, OverflowError) as error:
        report.add(MANIFEST_NAME, f"its signal profile cannot be read: {error}")
    else:
        computed = {
            "signal_profile": profile.fingerprint,
            "signal_build": profile.build_fingerprint,
            "vocabulary": manifest.vocabulary.get("fingerprint"),
            "split": manifest.split.get("fingerprint"),
        }
        for name, value in computed.items():
            if manifest.fingerprints[name] != value:
                report.add(
                    MANIFEST_NAME,
                    f"fingerprint {name} is {manifest.fingerprints[name]}, but the value computed "
                    f"from the manifest is {value}",
                )
        shape = (len(manifest.leads), manifest.num_samples)
        if (manifest.leads, shape, manifest.fs) != (profile.leads, profile.shape, profile.fs):
            report.add(MANIFEST_NAME, "leads, fs and num_samples are not its signal profile's")


def _check_folder(folder: Path, manifest: Manifest, report: VerifyReport) -> None:
    due = {MANIFEST_NAME, INDEX_NAME, REPORT_NAME, *(entry.name for entry in manifest.shards)}
    for path in sorted(folder.iterdir()):
        if PARTIAL_MARK in path.name:
            report.add(path.name, "left by a writer that was killed; prepare sweeps it away")
        elif path.name not in due:
            report.add(path.name, "not in the manifest; it does not belong to these shards")


def _check_ledger(ledger: Path, manifest: Manifest, report: VerifyReport) -> None:
    with open(ledger, newline="", encoding="utf-8") as handle:
        counts = dict(Counter(row.get("reason") for row in csv.DictReader(handle)))
    if counts != manifest.totals.rejected:
        report.add(
            str(ledger), f"lists {counts}, the manifest counts {manifest.totals.rejected} rejected"
        )


def _check_index(index: NDArray[np.void], manifest: Manifest, report: VerifyReport) -> bool:
    """Check what can be seen without the shards; return whether rows and shards correspond."""
    counts = [entry.num_samples for entry in manifest.shards]
    if len(index) != sum(counts) or len(index) != manifest.index.rows:
        report.add(
            INDEX_NAME,
            f"{len(index)} rows, the manifest says {manifest.index.rows} and its shards "
            f"{sum(counts)}: cut, or of other shards",
        )
        return False
    parts = [np.unique(index["patient_key"][_rows_of(manifest, split)]) for split in SPLITS]
    patients, times = np.unique(np.concatenate(parts), return_counts=True)
    shared = int((times[patients != b""] > 1).sum())
    if shared:
        report.add(INDEX_NAME, f"{shared} patients have samples in more than one split")
    keys = index["record_key"]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.empty(0, int)
    if len(np.unique(keys[starts])) != len(starts):
        report.add(INDEX_NAME, "the windows of one record are not consecutive")
    if len(starts) != manifest.totals.written:
        report.add(
            INDEX_NAME,
            f"{len(starts)} records, the manifest's totals say {manifest.totals.written} written",
        )
    return True


def _rows_of(manifest: Manifest, split: str) -> NDArray[np.bool_]:
    return np.repeat(
        [entry.split == split for entry in manifest.shards],
        [entry.num_samples for entry in manifest.shards],
    ).astype(bool)


def _check_shards(
    folder: Path,
    manifest: Manifest,
    index: NDArray[np.void],
    sample: int | None,
    seed: int,
    report: VerifyReport,
) -> None:
    layout = manifest.layout
    chosen: NDArray[np.int64] | None = None
    if sample is not None:
        rng = np.random.default_rng(seed)
        chosen = np.sort(rng.choice(len(index), min(sample, len(index)), replace=False))
    first = 0
    total = len(index) if chosen is None else len(chosen)
    with ProgressMeter("Verifying", total, "samples") as meter:
        for number, entry in enumerate(manifest.shards):
            rows = index[first : first + entry.num_samples]
            places = None if chosen is None else chosen[_within(chosen, first, len(rows))] - first
            shard = _ShardCheck(folder / entry.name, manifest, number, layout, rows)
            report.num_shards += 1
            for message in shard.findings(places):
                report.add(entry.name, message)
            report.num_samples += shard.num_read
            first += entry.num_samples
            meter.update(report.num_samples, f"{len(report.findings)} findings")


def _within(chosen: NDArray[np.int64], first: int, count: int) -> slice:
    low, high = np.searchsorted(chosen, [first, first + count])
    return slice(int(low), int(high))


class _ShardCheck:
    """One shard against its manifest entry and its index rows."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        number: int,
        layout: SampleLayout,
        rows: NDArray[np.void],
    ) -> None:
        self.path, self.manifest, self.number = path, manifest, number
        self.layout, self.rows = layout, rows
        self.entry = manifest.shards[number]
        self.num_read = 0

    def findings(self, places: NDArray[np.int64] | None) -> Iterator[str]:
        """Yield what is wrong, a few per shard at most; `places` None reads all of it."""
        if self.path.is_symlink() or not self.path.is_file():
            yield "missing" if not self.path.exists() else "not a plain file"
            return
        size = self.path.stat().st_size
        due = self.layout.shard_bytes(self.entry.num_samples)
        if self.entry.bytes != due:
            yield f"the manifest says {self.entry.bytes} bytes, its samples need {due}"
        if size < due:
            yield f"truncated: {size} of {due} bytes"
        elif size > due:
            yield f"{size - due} bytes too many"
        found = 0
        with open(self.path, "rb") as handle:
            for place in range(len(self.rows)) if places is None else map(int, places):
                handle.seek(place * self.layout.block_bytes)
                problem = self._problem(place, handle.read(self.layout.block_bytes))
                self.num_read += 1
                if problem:
                    found += 1
                    if found <= _FINDINGS_PER_SHARD:
                        yield f"sample {place}: {problem}"
            if found > _FINDINGS_PER_SHARD:
                yield f"and {found - _FINDINGS_PER_SHARD} more samples"
            if places is not None:
                return
            handle.seek(due - len(TAR_END))
            if size >= due and handle.read(len(TAR_END)) != TAR_END:
                yield "members after the last sample, or no end-of-archive mark"
            handle.seek(0)
            digest = hashlib.sha256()
            while piece := handle.read(_HASH_BYTES):
                digest.update(piece)
            if digest.hexdigest() != self.entry.sha256:
                yield "its SHA-256 is not the manifest's"

    def _problem(self, place: int, block: bytes) -> str | None:
        if len(block) < self.layout.block_bytes:
            return "cut off"
        stored = self.rows[place : place + 1]
        try:
            sample = self.layout.decode(block)
        except BadTarError as error:
            return str(error)
        try:
            row = index_row(
                sample,
                self.number,
                place * self.layout.block_bytes,
                self.entry.split,
                self.manifest.sites,
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            return f"its facts are damaged ({type(error).__name__}: {error})"
        if row.tobytes() == stored.tobytes():
            return None
        names = [n for n in row.dtype.names or () if row[n].tobytes() != stored[n].tobytes()]
        if names == ["xxh3"]:
            return f"signal or statistics of {sample.name} changed (xxh3 differs)"
        return f"{sample.name} is not what the index says ({', '.join(names)} differ)"

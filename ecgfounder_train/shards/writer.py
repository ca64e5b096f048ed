"""Shard writer: reads, filters and writes one planned shard; deterministic."""

import errno
import hashlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.ages import whole_years
from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.untrusted import reject_unexpected
from ecgfounder_train.labels.packing import unpack
from ecgfounder_train.records import EcgRecord
from ecgfounder_train.records.profiles import ProfiledRecord, SignalProfile, Window
from ecgfounder_train.records.reader import read_or_open
from ecgfounder_train.records.record import StoredRecording
from ecgfounder_train.records.remote import fetched, read_remote_record
from ecgfounder_train.records.storage import is_remote
from ecgfounder_train.records.streaming import WindowStream, stream_windows
from ecgfounder_train.shards.index import index_dtype, index_row
from ecgfounder_train.shards.plan import PlannedShard
from ecgfounder_train.shards.sample import TAR_END, Sample, SampleLayout

_FILES_GONE = {RejectReason.MISSING_HEADER.value, RejectReason.MISSING_SIGNAL_FILE.value}
_COPY_BYTES = 1 << 24
_SHOWN_S = 60.0


@dataclass(frozen=True)
class BuiltShard:
    """Result of a planned shard. Its rejects hold paths and stay in the private folder."""

    name: str
    split: str
    num_samples: int
    bytes: int
    sha256: str
    written: int
    """Records."""
    rejects: list[tuple[str, str, str, str]]
    """record_path, record_key, reason, detail."""
    dropped_stages: dict[str, int] = field(default_factory=dict)
    windows_left_out: dict[str, int] = field(default_factory=dict)
    """Windows of long recordings beyond the profile's limits, by reason."""


@dataclass(frozen=True)
class RecordPlace:
    """Location of an archive and how its records are read; sent to worker processes."""

    root: Path | str
    """What record paths are relative to: a folder, or an fsspec URL."""
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    """Of a URL, as fsspec takes them."""
    read_ecg: Callable[[str], EcgRecord | StoredRecording] | None = None
    """Reads or opens the record at a path; None: WFDB files below the root."""
    num_fetches: int = 16
    """Records fetched at once where the root is a URL."""

    def read(self, record_path: str) -> EcgRecord | StoredRecording:
        """Return one record; a long one is opened, not read.

        Raises:
            RejectedRecordError: It cannot be used.
            OSError: A remote storage did not answer.
        """
        if self.read_ecg is not None:
            return self.read_ecg(record_path)
        if is_remote(self.root):
            return read_remote_record(str(self.root), record_path, self.storage_options)
        root = Path(self.root)
        return read_or_open(root / record_path, root)

    def read_start(self, record_path: str) -> EcgRecord:
        """Return one record, of a long one its first minute; raises as `read`."""
        record = self.read(record_path)
        if isinstance(record, EcgRecord):
            return record
        return record.read(0, min(record.num_samples, round(_SHOWN_S * record.fs)))

    def reads(
        self, record_paths: Iterable[str]
    ) -> Iterator[Callable[[], EcgRecord | StoredRecording]]:
        """Yield, in order, what returns each record or raises; remote ones are fetched ahead."""
        if is_remote(self.root) and self.read_ecg is None:
            yield from fetched(record_paths, self.read, self.num_fetches)
        else:
            for record_path in record_paths:
                yield partial(self.read, record_path)

    def is_gone(self) -> bool:
        """Whether a local archive is missing (not mounted)."""
        return not is_remote(self.root) and not Path(self.root).is_dir()


def build_shard(
    planned: PlannedShard,
    folder: Path,
    place: RecordPlace,
    profile: SignalProfile,
    num_labels: int,
    sites: Sequence[str],
    on_record: Callable[[bool], None] = lambda written: None,
    on_share: Callable[[float], None] = lambda share: None,
    staging: Path | None = None,
    due_sha256: str | None = None,
) -> tuple[BuiltShard, NDArray[np.void]]:
    """Write ``folder/planned.name`` and return its result and its index rows.

    The same arguments and records give the same bytes. Samples go to disk one by one; the file
    takes its name only when it is whole and synced.

    Args:
        planned: Which records, in which order.
        folder: Where the shard goes.
        place: Where the records are.
        profile: Its first half is applied here.
        num_labels: K of the vocabulary.
        sites: All sites of the data set; the index holds places in this list.
        on_record: Called after each record with whether it was written.
        on_share: Called with the share done of a long recording.
        staging: Folder on a disk of this node where the shard is put together, so that a shared
            file system sees one large write; None writes in place.
        due_sha256: What the file must have; another content never takes the name.

    Raises:
        UserError: The disk is full, the archive is no longer mounted, or its records give other
            bytes than `due_sha256`.
        OSError: The staging folder failed, or a remote storage did not answer.
    """
    layout = SampleLayout(*profile.shape, num_labels)
    rejects: list[tuple[str, str, str, str]] = []
    dropped_stages: Counter[str] = Counter()
    windows_left_out: Counter[str] = Counter()
    with _shard_file(folder / planned.name, staging) as handle:
        output = _Output(handle, layout, planned, sites)
        rows_of_plan = planned.records.iter_rows(named=True)
        for row, read in zip(
            rows_of_plan, place.reads(planned.records["record_path"]), strict=True
        ):
            before = output.mark()
            try:
                # Errors of a remote storage are not about the record.
                with nullcontext() if is_remote(place.root) else reject_unexpected(keep=(OSError,)):
                    record = read()
                with reject_unexpected():
                    profiled = _profiled(profile, record, row["site"], on_share)
                for sample in _samples(row, record, profiled, profile, num_labels):
                    output.add(sample)
            except RejectedRecordError as error:
                output.back_to(before)
                rejects.append(
                    (row["record_path"], row["record_key"], error.reason.value, error.detail)
                )
                on_record(False)
                continue
            except Exception as error:
                error.add_note(f"while reading record {row['record_key']} for {planned.name}")
                raise
            assert output.mark()[0] > before[0], "a record without windows is rejected"
            dropped_stages.update(profiled.dropped_stages)
            if isinstance(profiled, WindowStream):
                windows_left_out.update(profiled.left_out)
            on_record(True)
        # An unmounted archive looks like missing records; do not put that on record.
        if _FILES_GONE & {reason for _, _, reason, _ in rejects} and place.is_gone():
            raise UserError(
                f"The archive {place.root} is not mounted. Mount it and run the same command again."
            )
        sha256 = output.finish()
        if due_sha256 not in (None, sha256):
            raise UserError(
                f"The rebuilt {planned.name} has SHA-256 {sha256[:12]}..., not the "
                f"{str(due_sha256)[:12]}... of the manifest ({len(rejects)} records rejected): its "
                "records have changed since, or another version of this program wrote it. The "
                "file was left as it is."
            )
    index = output.index
    rows = np.concatenate(index) if index else np.empty(0, index_dtype(num_labels))
    built = BuiltShard(
        name=planned.name,
        split=planned.split,
        num_samples=len(rows),
        bytes=layout.shard_bytes(len(rows)),
        sha256=sha256,
        written=len(planned.records) - len(rejects),
        rejects=rejects,
        dropped_stages=dict(dropped_stages),
        windows_left_out=dict(windows_left_out),
    )
    return built, rows


class _Output:
    """The shard as it grows; a record that turns out to be unusable midway is taken back."""

    def __init__(
        self, handle: IO[bytes], layout: SampleLayout, planned: PlannedShard, sites: Sequence[str]
    ) -> None:
        self._handle, self._layout, self._planned, self._sites = handle, layout, planned, sites
        self._digest = hashlib.sha256()
        self.index: list[NDArray[np.void]] = []

    def add(self, sample: Sample) -> None:
        """Write one sample."""
        block = self._layout.encode(sample)
        offset = len(self.index) * self._layout.block_bytes
        planned = self._planned
        self.index.append(index_row(sample, planned.number, offset, planned.split, self._sites))
        self._digest.update(block)
        self._handle.write(block)

    def mark(self) -> tuple[int, Any]:
        """Return what `back_to` needs to forget all samples from here on."""
        return len(self.index), self._digest.copy()

    def back_to(self, mark: tuple[int, Any]) -> None:
        """Remove the samples written since a mark."""
        number, digest = mark
        if number < len(self.index):
            del self.index[number:]
            self._digest = digest
            self._handle.seek(number * self._layout.block_bytes)
            self._handle.truncate()

    def finish(self) -> str:
        """Write the end of the archive and return the SHA-256 of the file."""
        self._digest.update(TAR_END)
        self._handle.write(TAR_END)
        return self._digest.hexdigest()


def _profiled(
    profile: SignalProfile,
    record: EcgRecord | StoredRecording,
    site: str | None,
    on_share: Callable[[float], None],
) -> ProfiledRecord | WindowStream:
    if isinstance(record, EcgRecord):
        return profile.apply(record, site)
    return stream_windows(profile, record, site, on_share)


def _guarded(windows: Iterable[Window]) -> Iterator[Window]:
    """Yield the windows; what a damaged file raises in their midst rejects the record."""
    iterator = iter(windows)
    while True:
        with reject_unexpected():
            window = next(iterator, None)
        if window is None:
            return
        yield window


@contextmanager
def _shard_file(target: Path, staging: Path | None) -> Iterator[IO[bytes]]:
    """Yield the file that becomes `target`; with `staging`, by way of a file there."""
    if staging is None:
        with atomic_file(target) as handle:
            yield handle
        return
    staging.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=staging) as local:
        try:
            yield local
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(
                    error.errno, f"build.staging_dir={staging}: {error.strerror}"
                ) from None
            raise
        # Nameless, so that even a killed worker leaves nothing on the node's disk.
        written = local.tell()
        local.seek(0)
        with atomic_file(target) as handle:
            shutil.copyfileobj(local, handle, _COPY_BYTES)
            if handle.tell() != written:
                raise OSError(f"{staging}: {handle.tell()} of {written} bytes could be read back")


def _samples(
    row: dict[str, Any],
    record: EcgRecord | StoredRecording,
    profiled: ProfiledRecord | WindowStream,
    profile: SignalProfile,
    num_labels: int,
) -> Iterator[Sample]:
    packed = np.stack([np.frombuffer(row[name], np.uint8) for name in ("labels", "observed")])
    labels = unpack(packed, num_labels)
    age, sex = header_facts(record.comments)
    age = row["age_years"] if row["age_years"] is not None else age
    for window in _guarded(profiled.windows):
        yield Sample(
            record_key=row["record_key"],
            window=window.number,
            ecg=window.ecg,
            stats=window.stats,
            labels=labels,
            facts={
                "valid_start": int(window.valid_start),
                "valid_num_samples": int(window.valid_num_samples),
                # A record that lacks a lead is rejected; a derived lead is present and marked.
                "leads_present": (1 << len(profile.leads)) - 1,
                "leads_derived": _lead_bits(profiled.derived_leads, profile.leads),
                "native_fs": float(np.float32(profiled.native_fs)),
                "site": row["site"],
                "sex": row["sex"] or sex,
                "age_years": whole_years(age),
                "patient_key": row["patient_key"] or "",
            },
        )


_AGE = re.compile(r"^\W*age\W*(?<!-)(\d{1,3}(?:\.\d+)?)\b", re.IGNORECASE)
_SEX = re.compile(r"^\W*(?:sex|gender)\W*(f|m|female|male)\b", re.IGNORECASE)


def header_facts(comments: Sequence[str]) -> tuple[float | None, str | None]:
    """Return age (years) and sex (F, M) where a WFDB header's comments state them.

    They fill what the tables of a source leave open (PhysioNet challenges: ``#Age: 63``).
    """
    age, sex = None, None
    for comment in comments:
        if age is None and (match := _AGE.match(comment)):
            age = float(match[1])
        if sex is None and (match := _SEX.match(comment)):
            sex = match[1][0].upper()
    return age, sex


def _lead_bits(names: Sequence[str], leads: Sequence[str]) -> int:
    return sum(1 << position for position, lead in enumerate(leads) if lead in names)

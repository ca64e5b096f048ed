"""One planned shard, read, filtered and written: a pure function of its arguments."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.catalog.build import OLDEST_YEARS
from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.labels.packing import unpack
from ecgfounder_train.records import EcgRecord, read_record
from ecgfounder_train.records.profiles import ProfiledRecord, SignalProfile
from ecgfounder_train.shards.index import index_dtype, index_row
from ecgfounder_train.shards.plan import PlannedShard
from ecgfounder_train.shards.sample import TAR_END, Sample, SampleLayout

_FILES_GONE = {RejectReason.MISSING_HEADER.value, RejectReason.MISSING_SIGNAL_FILE.value}


@dataclass(frozen=True)
class BuiltShard:
    """What came of a planned shard. Its rejects hold paths and stay in the private folder."""

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


def build_shard(
    planned: PlannedShard,
    folder: Path,
    root: Path,
    profile: SignalProfile,
    num_labels: int,
    sites: Sequence[str],
    read: Callable[[Path], EcgRecord] = read_record,
    on_record: Callable[[bool], None] = lambda written: None,
) -> tuple[BuiltShard, NDArray[np.void]]:
    """Write ``folder/planned.name`` and return what came of it, and its index rows.

    The same arguments and records give the same bytes. Samples go to disk one by one; the file
    takes its name only when it is whole and synced.

    Args:
        planned: Which records, in which order.
        folder: Where the shard goes.
        root: What the record paths are relative to.
        profile: Its first half is applied here.
        num_labels: K of the vocabulary.
        sites: All sites of the data set; the index holds places in this list.
        read: How a record is read.
        on_record: Called after each record with whether it was written.

    Raises:
        UserError: The disk is full, or the archive has gone away.
    """
    layout = SampleLayout(*profile.shape, num_labels)
    digest = hashlib.sha256()
    index: list[NDArray[np.void]] = []
    rejects: list[tuple[str, str, str, str]] = []
    dropped_stages: dict[str, int] = {}
    with atomic_file(folder / planned.name) as handle:
        for row in planned.records.iter_rows(named=True):
            try:
                record = read(root / row["record_path"])
                profiled = profile.apply(record, row["site"])
            except RejectedRecordError as error:
                rejects.append(
                    (row["record_path"], row["record_key"], error.reason.value, error.detail)
                )
                on_record(False)
                continue
            except Exception as error:
                error.add_note(f"while reading record {row['record_key']} for {planned.name}")
                raise
            assert profiled.windows, "a profile rejects a record rather than give no window"
            for sample in _samples(row, record, profiled, profile, num_labels):
                block = layout.encode(sample)
                offset = len(index) * layout.block_bytes
                index.append(index_row(sample, planned.number, offset, planned.split, sites))
                digest.update(block)
                handle.write(block)
            for stage in profiled.dropped_stages:
                dropped_stages[stage] = dropped_stages.get(stage, 0) + 1
            on_record(True)
        # An unmounted archive looks like missing records; do not put that on record.
        if _FILES_GONE & {reason for _, _, reason, _ in rejects} and not root.is_dir():
            raise UserError(f"The archive {root} is gone. Mount it and run the same command again.")
        digest.update(TAR_END)
        handle.write(TAR_END)
    rows = np.concatenate(index) if index else np.empty(0, index_dtype(num_labels))
    built = BuiltShard(
        name=planned.name,
        split=planned.split,
        num_samples=len(rows),
        bytes=layout.shard_bytes(len(rows)),
        sha256=digest.hexdigest(),
        written=len(planned.records) - len(rejects),
        rejects=rejects,
        dropped_stages=dropped_stages,
    )
    return built, rows


def _samples(
    row: dict[str, Any],
    record: EcgRecord,
    profiled: ProfiledRecord,
    profile: SignalProfile,
    num_labels: int,
) -> Iterator[Sample]:
    packed = np.stack([np.frombuffer(row[name], np.uint8) for name in ("labels", "observed")])
    labels = unpack(packed, num_labels)
    age, sex = header_facts(record.comments)
    age = row["age_years"] if row["age_years"] is not None else age
    for window in profiled.windows:
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
                "age_years": None if age is None else round(age, 2),
                "patient_key": row["patient_key"] or "",
            },
        )


_AGE = re.compile(r"^\W*age\W*(\d{1,3}(?:\.\d+)?)\b", re.IGNORECASE)
_SEX = re.compile(r"^\W*(?:sex|gender)\W*(f|m|female|male)\b", re.IGNORECASE)


def header_facts(comments: Sequence[str]) -> tuple[float | None, str | None]:
    """Return age (years) and sex (F, M) where a WFDB header's comments state them.

    They fill what the tables of a source leave open (PhysioNet challenges: ``#Age: 63``).
    """
    age, sex = None, None
    for comment in comments:
        if age is None and (match := _AGE.match(comment)):
            age = float(match[1]) if float(match[1]) <= OLDEST_YEARS else 90.0
        if sex is None and (match := _SEX.match(comment)):
            sex = match[1][0].upper()
    return age, sex


def _lead_bits(names: Sequence[str], leads: Sequence[str]) -> int:
    return sum(1 << position for position, lead in enumerate(leads) if lead in names)

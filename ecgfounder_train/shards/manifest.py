"""Manifest of a shard set: one JSON file, written last."""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.shards.index import INDEX_NAME, index_bytes
from ecgfounder_train.shards.sample import SampleLayout

MANIFEST_NAME = "manifest.json"
REPORT_NAME = "data_report.html"
"""The page `prepare` ends with; it is in the folder of the shards and not part of them."""
FORMAT_VERSION = 2
"""1: ages with decimals; 2: whole years, capped at 90."""
_READABLE_VERSIONS = (1, 2)
_logger = logging.getLogger(__name__)
_remarked: set[Path] = set()
MAX_MANIFEST_BYTES = 64 << 20
"""HEEDB's 5,300 shards take one mebibyte. Parsed, JSON takes up to twenty times its size."""
MAX_INDEX_BYTES = 16 << 30
"""Index of about 100 million samples; HEEDB has 11 million."""
_MAX_LENGTHS = {"leads": 16, "labels": 10_000, "sites": 65_535, "shards": 250_000}
"""Longest lists. The index keeps leads as 16 bits and a site's place in 2 bytes."""
_MAX_WINDOW_SAMPLES = 1 << 24
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}\.tar")
FINGERPRINTS = ("vocabulary", "signal_profile", "signal_build", "split", "secret")


@dataclass(frozen=True)
class ShardEntry:
    """One shard: `num_samples` counts its samples (windows), `bytes` is the file's size."""

    name: str
    split: str
    num_samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexEntry:
    """The index file; `probe_xxh3` covers its first and last 64 KiB."""

    name: str
    rows: int
    bytes: int
    sha256: str
    probe_xxh3: str


@dataclass(frozen=True)
class IncrementEntry:
    """What the first build, or a later increment, brought; counts of records but `windows`.

    `rejected` are those rejected while its shards were built; the others were rejected before.
    """

    shards: int
    written: int
    rejected: int
    windows: int


@dataclass(frozen=True)
class Totals:
    """Counts of records by what became of them; `windows` are counted separately."""

    found: int
    written: int
    unlabelled: int
    rejected: dict[str, int]
    windows: int

    def problem(self) -> str | None:
        """Return which totals do not add up, None if all do."""
        accounted = self.written + self.unlabelled + sum(self.rejected.values())
        if self.found != accounted:
            return (
                f"totals do not add up: {self.found} records found, but {self.written} written + "
                f"{self.unlabelled} unlabelled + {sum(self.rejected.values())} rejected "
                f"= {accounted}"
            )
        return None

    def summary(self) -> str:
        """Return one sentence in which everything adds up."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.rejected.items())
        return (
            f"{self.found:,} records found = {self.written:,} written + {self.unlabelled:,} "
            f"unlabelled + {sum(self.rejected.values()):,} rejected"
            + (f" ({reasons})" if reasons else "")
            + f"; {self.windows:,} windows."
        )


@dataclass(frozen=True)
class Manifest:
    """Metadata of a shard set. Contains no path, no native id, no date."""

    source: str
    fingerprints: dict[str, str]
    vocabulary: dict[str, Any]
    """name, labels (in order), options."""
    plan: dict[str, Any]
    """seed, records_per_shard: how records were drawn to shards."""
    signal: dict[str, Any]
    split: dict[str, Any]
    leads: tuple[str, ...]
    fs: float
    """Hz, of the stored windows."""
    num_samples: int
    """Length of a window in samples (time)."""
    sites: tuple[str, ...]
    shards: tuple[ShardEntry, ...]
    index: IndexEntry
    totals: Totals
    dropped_stages: dict[str, int] = field(default_factory=dict)
    """Filter stages left out because they were at or above Nyquist -> number of records."""
    windows_left_out: dict[str, int] = field(default_factory=dict)
    """Windows of long recordings beyond the signal profile's limits, by reject reason."""
    increments: tuple[IncrementEntry, ...] = ()
    """In order; shards of an increment are consecutive."""
    gone_upstream: int = 0
    """Records in shards that the archive's tables no longer list."""
    package_version: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in order."""
        return tuple(self.vocabulary["labels"])

    @property
    def fingerprint(self) -> str:
        """Identity of the data set: the same samples, labels and order have the same fingerprint.

        This is the "manifest hash" of the epoch plan.
        """
        shards = [[entry.name, entry.split, entry.sha256] for entry in self.shards]
        return fingerprint([self.format_version, self.fingerprints, self.index.sha256, shards])

    @property
    def layout(self) -> SampleLayout:
        """Byte layout of a sample."""
        return SampleLayout(len(self.leads), self.num_samples, len(self.labels))

    def size_problem(self) -> str | None:
        """Return which stated size contradicts the stated counts, None if none does."""
        layout = self.layout
        for entry in self.shards:
            if entry.bytes != layout.shard_bytes(entry.num_samples):
                return (
                    f"shard {entry.name} is stated to have {entry.bytes:,} bytes, but its "
                    f"{entry.num_samples:,} samples take {layout.shard_bytes(entry.num_samples):,}"
                )
        rows = sum(entry.num_samples for entry in self.shards)
        due = index_bytes(len(self.labels), rows)
        if (self.index.rows, self.index.bytes) != (rows, due):
            return (
                f"the index is stated to have {self.index.rows:,} rows in {self.index.bytes:,} "
                f"bytes, but the shards' {rows:,} samples take {due:,}"
            )
        if due > MAX_INDEX_BYTES:
            return f"an index of {due:,} bytes is larger than {MAX_INDEX_BYTES:,}"
        return None

    def summary(self) -> str:
        """Return the totals, and the windows of long recordings that were left out."""
        totals = self.totals.summary()
        if not self.windows_left_out:
            return totals
        reasons = ", ".join(f"{count:,} {name}" for name, count in self.windows_left_out.items())
        number = sum(self.windows_left_out.values())
        return f"{totals} {number:,} windows of long recordings were left out ({reasons})."

    def to_json(self) -> str:
        """Return the file's text; equal manifests give equal text."""
        content = asdict(self)
        if not self.windows_left_out:
            del content["windows_left_out"]
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically."""
        problem = self.totals.problem()
        assert problem is None, problem
        with atomic_file(folder / MANIFEST_NAME, "w") as handle:
            handle.write(self.to_json())


def read_manifest(folder: Path | str) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        UserError: There is none, it is truncated or damaged, or of another format version.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)):
            raise UserError(
                f"{folder} is a URL. Pretraining and evaluation read shards from URLs through a "
                "cache; for anything else copy the folder to a disk of this machine first."
            )
        raise UserError(f"There is no folder {folder}. Set shards= to what prepare wrote.")
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"larger than {MAX_MANIFEST_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {MANIFEST_NAME}: it is not a folder of shards, or its build was not "
            "finished. Run prepare with the same arguments to finish it."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is truncated or damaged ({error}). Run prepare with the same arguments: it "
            "writes the manifest again and keeps the shards."
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in _READABLE_VERSIONS:
        raise UserError(
            f"{path} has format version {version!r}; this version of ecgfounder_train reads "
            f"{' and '.join(map(str, _READABLE_VERSIONS))}. Prepare the shards again, or use the "
            "version that wrote them "
            f"({content.get('package_version') if isinstance(content, dict) else 'unknown'})."
        )
    if version < FORMAT_VERSION and folder not in _remarked:
        _remarked.add(folder)
        _logger.warning(
            "%s has format 1: its ages have decimals, from which intervals between recordings can "
            "be computed. Do not share it; prepare it again into another shards= folder.",
            folder,
        )
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path} is damaged: {error}. Run prepare with the same arguments: it writes the "
            "manifest again and keeps the shards."
        ) from error


def _parse(content: Mapping[str, Any]) -> Manifest:
    known = {item.name for item in fields(Manifest)}
    values = {key: value for key, value in content.items() if key in known}
    # Absent from manifests that were written before there were increments.
    values.setdefault("increments", ())
    values.setdefault("gone_upstream", 0)
    values.setdefault("windows_left_out", {})
    if missing := sorted(known - values.keys()):
        raise ValueError(f"without {', '.join(missing)}")
    values["shards"] = tuple(_entry(ShardEntry, item) for item in values["shards"])
    values["index"] = _entry(IndexEntry, values["index"])
    values["totals"] = _entry(Totals, values["totals"])
    values["increments"] = tuple(_entry(IncrementEntry, item) for item in values["increments"])
    values["leads"], values["sites"] = tuple(values["leads"]), tuple(values["sites"])
    manifest = Manifest(**values)
    for name in ("fingerprints", "vocabulary", "plan", "signal", "split", "dropped_stages"):
        if not isinstance(content[name], dict):
            raise ValueError(f"{name} is not an object")
    if not isinstance(manifest.windows_left_out, dict):
        raise ValueError("windows_left_out is not an object")
    _check_shape(manifest)
    if missing := sorted(set(FINGERPRINTS) - manifest.fingerprints.keys()):
        raise ValueError(f"without the fingerprints {', '.join(missing)}")
    for entry in manifest.shards:
        if entry.split not in SPLITS:
            raise ValueError(f"split {entry.split!r} is none of {', '.join(SPLITS)}")
        # Names are joined to folders and URLs: anything else could lead out of them.
        if not _SHARD_NAME.fullmatch(entry.name):
            raise ValueError(f"shard name {entry.name!r} is not a plain file name NAME.tar")
    if len({entry.name for entry in manifest.shards}) < len(manifest.shards):
        raise ValueError("two shards have the same name")
    if manifest.index.name != INDEX_NAME:
        raise ValueError(f"index name {manifest.index.name!r} is not {INDEX_NAME}")
    return manifest


def _check_shape(manifest: Manifest) -> None:
    """Raise ValueError unless shape and lists are what an index and a tar can hold."""
    labels = manifest.vocabulary.get("labels")
    if not isinstance(labels, list):
        raise ValueError("without the vocabulary's labels")
    lists = {
        "leads": manifest.leads,
        "labels": labels,
        "sites": manifest.sites,
        "shards": manifest.shards,
    }
    for name, items in lists.items():
        if len(items) > _MAX_LENGTHS[name]:
            raise ValueError(f"{len(items):,} {name}, more than {_MAX_LENGTHS[name]:,}")
        if name != "shards" and not all(isinstance(item, str) for item in items):
            raise ValueError(f"{name} are not all text")
    samples = manifest.num_samples
    if not (type(samples) is int and 0 < samples <= _MAX_WINDOW_SAMPLES and manifest.leads):
        raise ValueError(f"no shape: {samples!r} samples, leads {manifest.leads!r}")
    if type(manifest.fs) not in (int, float) or not 0 < manifest.fs < 1e6:
        raise ValueError(f"fs is {manifest.fs!r} Hz")


def _entry(kind: Any, content: Mapping[str, Any]) -> Any:
    values = {}
    for item in fields(kind):
        expected = get_origin(item.type) or item.type
        value = content[item.name]
        if type(value) is not expected or (isinstance(value, int) and value < 0):
            raise ValueError(f"{item.name} is {value!r}")
        values[item.name] = value
    return kind(**values)

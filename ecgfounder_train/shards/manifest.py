"""The manifest: what a folder of shards is, in one JSON file written last."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.splits import SPLITS

MANIFEST_NAME = "manifest.json"
REPORT_NAME = "data_report.html"
"""The page `prepare` ends with; it lies beside the shards and is no part of them."""
FORMAT_VERSION = 1
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
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
    """Where every record of the archive went; `windows` are counted beside."""

    found: int
    written: int
    unlabelled: int
    rejected: dict[str, int]
    windows: int

    def problem(self) -> str | None:
        """Return what does not add up, None when all does."""
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
    """All that a reader of the shards must know. Holds no path, no native id, no date."""

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
    increments: tuple[IncrementEntry, ...] = ()
    """In order; shards of an increment stand together."""
    gone_upstream: int = 0
    """Records found and in shards, but no more listed by the archive's tables."""
    package_version: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels in order."""
        return tuple(self.vocabulary["labels"])

    @property
    def fingerprint(self) -> str:
        """The data set's identity: same samples, labels and order, whatever version wrote them.

        This is the "manifest hash" of the epoch plan.
        """
        shards = [[entry.name, entry.split, entry.sha256] for entry in self.shards]
        return fingerprint([self.format_version, self.fingerprints, self.index.sha256, shards])

    def to_json(self) -> str:
        """Return the file's text; equal manifests give equal text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` atomically."""
        problem = self.totals.problem()
        assert problem is None, problem
        with atomic_file(folder / MANIFEST_NAME, "w") as handle:
            handle.write(self.to_json())


def read_manifest(folder: Path | str) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        UserError: There is none, it is cut or damaged, or of another format version.
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
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no {MANIFEST_NAME}: it is no folder of shards, or its build was not "
            "finished. Run prepare with the same arguments to finish it."
        ) from None
    except ValueError as error:
        raise UserError(
            f"{path} is cut or damaged ({error}). Run prepare with the same arguments: it writes "
            "the manifest anew and keeps the shards."
        ) from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version!r}; this version of ecgfounder_train reads "
            f"{FORMAT_VERSION}. Prepare the shards again, or use the version that wrote them "
            f"({content.get('package_version') if isinstance(content, dict) else 'unknown'})."
        )
    try:
        return _parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is damaged: {error}. Run prepare with the same arguments: it writes the "
            "manifest anew and keeps the shards."
        ) from error


def _parse(content: Mapping[str, Any]) -> Manifest:
    known = {item.name for item in fields(Manifest)}
    values = {key: value for key, value in content.items() if key in known}
    # Absent from manifests that were written before there were increments.
    values.setdefault("increments", ())
    values.setdefault("gone_upstream", 0)
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
            raise ValueError(f"{name} is no object")
    if not (type(manifest.num_samples) is int and manifest.num_samples > 0 and manifest.leads):
        raise ValueError(f"no shape: {manifest.num_samples!r} samples, leads {manifest.leads!r}")
    if missing := sorted(set(FINGERPRINTS) - manifest.fingerprints.keys()):
        raise ValueError(f"without the fingerprints {', '.join(missing)}")
    if not isinstance(manifest.vocabulary.get("labels"), list):
        raise ValueError("without the vocabulary's labels")
    for entry in manifest.shards:
        if entry.split not in SPLITS:
            raise ValueError(f"split {entry.split!r} is none of {', '.join(SPLITS)}")
        if not _SHARD_NAME.fullmatch(entry.name):
            raise ValueError(f"shard name {entry.name!r} is no plain file name")
    return manifest


def _entry(kind: Any, content: Mapping[str, Any]) -> Any:
    values = {}
    for item in fields(kind):
        expected = get_origin(item.type) or item.type
        value = content[item.name]
        if type(value) is not expected or (isinstance(value, int) and value < 0):
            raise ValueError(f"{item.name} is {value!r}")
        values[item.name] = value
    return kind(**values)

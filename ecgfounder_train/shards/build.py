"""A folder of shards from a catalog: goes on where it was stopped, and gives the same bytes."""

import csv
import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train import __version__
from ecgfounder_train.core.errors import RejectReason, UserError, did_you_mean
from ecgfounder_train.core.files import atomic_file, sha256_file, sweep_partial_files
from ecgfounder_train.core.fingerprints import canonical_json, fingerprint
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.core.settings import parse_settings
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records import EcgRecord, read_record
from ecgfounder_train.records.profiles import SignalProfile
from ecgfounder_train.shards.index import INDEX_NAME, probe_index, write_index
from ecgfounder_train.shards.manifest import (
    FINGERPRINTS,
    FORMAT_VERSION,
    MANIFEST_NAME,
    IndexEntry,
    Manifest,
    ShardEntry,
    Totals,
    read_manifest,
)
from ecgfounder_train.shards.plan import (
    REJECT_COLUMNS,
    PlannedShard,
    plan_shards,
    sort_catalog,
)
from ecgfounder_train.shards.writer import BuiltShard, build_shard
from ecgfounder_train.splits import PatientSplit

REJECTS_NAME = "rejects.csv"
_SETTINGS_NAME = "build.json"
_UNITS_FOLDER = "units"


@dataclass(frozen=True)
class BuildOptions:
    """The keys of ``configs/build``."""

    records_per_shard: int = 2000
    seed: int = 0
    max_reject_share: float = 0.2
    max_reject_share_by_reason: Mapping[str, float] = field(default_factory=dict)
    min_rejects: int = 20
    retry_rejected: bool = False
    check_sha256: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "BuildOptions":
        """Return checked options.

        Raises:
            UserError: An unknown key or reason, or a value out of range.
        """
        options = parse_settings(cls, config, "build")
        if options.records_per_shard < 1:
            raise UserError(
                f"build.records_per_shard={options.records_per_shard} must be at least 1."
            )
        for reason in options.max_reject_share_by_reason:
            if reason not in set(RejectReason):
                raise UserError(
                    f"build.max_reject_share_by_reason.{reason} is no reason to reject a record."
                    + did_you_mean(reason, RejectReason)
                )
        shares = (options.max_reject_share, *options.max_reject_share_by_reason.values())
        if not all(0 <= share <= 1 for share in shares):
            raise UserError("build.max_reject_share and its exceptions must lie between 0 and 1.")
        return options


def private_folder(folder: Path | str) -> Path:
    """Return where the catalog, the ledger and the secret of a folder of shards are kept."""
    folder = Path(folder)
    return folder.with_name(folder.name + ".private")


def build_shards(
    catalog: pl.DataFrame,
    folder: Path | str,
    *,
    root: Path | str,
    profile: SignalProfile,
    vocabulary: Vocabulary,
    split: PatientSplit,
    secret: Secret,
    source_name: str,
    options: BuildOptions | None = None,
    private: Path | str | None = None,
    read: Callable[[Path], EcgRecord] = read_record,
) -> Manifest:
    """Write shards, index and manifest of a catalog; make only what is missing.

    A shard counts as made when its unit record in the private folder says so and the file is there
    with its size (with `check_sha256`, its content). Stopped at any moment, the next call with the
    same arguments goes on, and the folder ends up byte for byte the same.

    Args:
        catalog: One row per record, as `ecgfounder_train.catalog` makes it.
        folder: Where shards, index and manifest go.
        root: What the catalog's record paths are relative to.
        profile: The signal profile; its first half is applied.
        vocabulary: What the packed labels mean.
        split: What assigned the records to train, val and test.
        secret: What made the keys.
        source_name: Name of the archive, for the manifest.
        options: The keys of ``configs/build``.
        private: Folder for what must not be shared; ``<folder>.private`` by default.
        read: How a record is read.

    Raises:
        UserError: The folder was built with other settings, too many records are rejected, the
            disk is full, or another build is at work in the folder.
        KeyboardInterrupt: Ctrl-C; the message says how to go on.
    """
    folder, root = Path(folder), Path(root)
    private = Path(private) if private is not None else private_folder(folder)
    options = options or BuildOptions()
    piles = sort_catalog(catalog)
    planned = plan_shards(piles.writable, options.seed, options.records_per_shard)
    draft = Manifest(
        source=source_name,
        fingerprints={
            "vocabulary": vocabulary.fingerprint,
            "signal_profile": profile.fingerprint,
            "signal_build": profile.build_fingerprint,
            "split": split.fingerprint,
            "secret": secret.fingerprint,
        },
        plan={"seed": options.seed, "records_per_shard": options.records_per_shard},
        vocabulary=vocabulary.to_dict(),
        signal=profile.to_dict(),
        split=split.to_dict(),
        leads=tuple(profile.leads),
        fs=float(profile.fs),
        num_samples=profile.num_samples,
        sites=piles.sites,
        shards=(),
        index=IndexEntry(INDEX_NAME, 0, 0, "", ""),
        totals=Totals(len(catalog), 0, piles.unlabelled, {}, 0),
        package_version=__version__,
    )
    _make_folders(folder, private, private / _UNITS_FOLDER)
    with _only_build(private):
        catalog_digest = fingerprint([[shard.digest for shard in planned], piles.sites])
        settings = {**_settings(draft), "catalog": catalog_digest, "format_version": FORMAT_VERSION}
        _check_same_build(folder, private, settings, planned)
        for place in (folder, private, private / _UNITS_FOLDER):
            sweep_partial_files(place)
        units = _UnitRecords(folder, private / _UNITS_FOLDER, fingerprint(settings), options)
        ledger = _Ledger(options, len(catalog), private / REJECTS_NAME)
        ledger.add(piles.rejects.rows())
        made: dict[str, BuiltShard] = {}
        try:
            for shard in planned:
                if built := units.load(shard):
                    made[shard.name] = built
                    ledger.add(built.rejects)
            ledger.check()
            missing = [shard for shard in planned if shard.name not in made]
            with _progress(missing, planned) as on_record:
                for shard in missing:
                    built, rows = build_shard(
                        shard,
                        folder,
                        root,
                        profile,
                        vocabulary.num_labels,
                        piles.sites,
                        read,
                        on_record,
                    )
                    units.save(shard, built, rows)
                    made[shard.name] = built
                    ledger.add(built.rejects)
                    ledger.check()
            ledger.write()
            draft = replace(draft, totals=replace(draft.totals, rejected=ledger.counts()))
            return _finish(folder, [made[shard.name] for shard in planned], units, draft)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Stopped with {len(made)} of {len(planned)} shards made in {folder}. Run the "
                "same command again to go on from there."
            ) from None


def _finish(
    folder: Path, made: list[BuiltShard], units: "_UnitRecords", draft: Manifest
) -> Manifest:
    """Write index and manifest, last of all, and return the manifest."""
    windows = sum(built.num_samples for built in made)
    if not windows:
        totals = draft.totals
        raise UserError(
            f"Nothing to write: of {totals.found} records found, {totals.unlabelled} have no "
            f"observed label and {sum(totals.rejected.values())} are rejected "
            f"({_listed(totals.rejected)}). See {units.folder.parent / REJECTS_NAME}."
        )
    path = folder / INDEX_NAME
    sha256 = write_index(path, len(draft.labels), map(units.rows, made), windows)
    dropped = Counter[str]()
    for built in made:
        dropped.update(built.dropped_stages)
    manifest = replace(
        draft,
        shards=tuple(
            ShardEntry(built.name, built.split, built.num_samples, built.bytes, built.sha256)
            for built in made
        ),
        index=IndexEntry(
            INDEX_NAME, windows, path.stat().st_size, sha256, f"{probe_index(path):016x}"
        ),
        totals=replace(draft.totals, written=sum(built.written for built in made), windows=windows),
        dropped_stages=dict(sorted(dropped.items())),
    )
    manifest.write(folder)
    return manifest


def _make_folders(folder: Path, private: Path, units: Path) -> None:
    for path, mode in ((folder, 0o777), (private, 0o700), (units, 0o700)):
        try:
            path.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"Cannot make the folder {path}: {error.strerror}. Choose another shards= folder."
            ) from error


@contextmanager
def _only_build(private: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets go of it when the process dies, however it dies."""
    with open(private / "build.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is building these shards (it holds {private / 'build.lock'}). "
                "Wait for it, or stop it first."
            ) from None
        yield


def _settings(manifest: Manifest) -> dict[str, Any]:
    """Return what two builds must have in common, by the name a message gives it."""
    return {
        **{name: manifest.fingerprints[name] for name in FINGERPRINTS},
        "source": manifest.source,
        **{f"build.{name}": value for name, value in manifest.plan.items()},
    }


def _check_same_build(
    folder: Path,
    private: Path,
    settings: Mapping[str, Any],
    planned: tuple[PlannedShard, ...],
) -> None:
    """Refuse a folder that holds shards of other settings; else note down these.

    Raises:
        UserError: Says which setting differs.
    """
    noted = private / _SETTINGS_NAME
    former: dict[str, Any] = {}
    present = {path.name for path in folder.glob("*.tar")}
    again = f"to make these anew, delete {folder}, {noted} and {private / _UNITS_FOLDER}"
    try:
        if (folder / MANIFEST_NAME).exists():
            former = _settings(read_manifest(folder))
    except UserError:
        # A damaged manifest is written anew; what the private folder says still counts.
        if not noted.exists():
            raise
    if noted.exists():
        try:
            former |= json.loads(noted.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{noted} is damaged ({error}); {again}.") from error
    different = [name for name, value in former.items() if settings.get(name) != value]
    if present and different:
        raise UserError(
            f"{folder} was built with another {', '.join(different)} than this run has "
            f"({', '.join(f'{name}: {former[name]} there' for name in different)}). Shards of "
            f"different settings are never mixed: choose another shards= folder, or go back to "
            f"the former settings; {again}."
        )
    strange = sorted(present if not former else present - {shard.name for shard in planned})
    if strange:
        raise UserError(
            f"{folder} holds {strange[0]} and perhaps more of which {private} knows nothing. "
            f"Choose an empty shards= folder or give the private folder they were built with; "
            f"{again}."
        )
    with atomic_file(noted, "w") as handle:
        handle.write(canonical_json(dict(settings)) + "\n")


class _UnitRecords:
    """What is known of each finished shard: a JSON file and its index rows, in the private folder.

    The JSON file is written last and counts only together with the shard it describes.
    """

    def __init__(self, shards: Path, folder: Path, settings: str, options: BuildOptions) -> None:
        self.shards, self.folder, self.settings, self.options = shards, folder, settings, options

    def save(self, planned: PlannedShard, built: BuiltShard, rows: NDArray[np.void]) -> None:
        """Put a finished shard on record."""
        with atomic_file(self._index_path(built.name)) as handle:
            np.save(handle, rows)
        record = {
            "settings": self.settings,
            "plan": planned.digest,
            "index_sha256": sha256_file(self._index_path(built.name)),
            "shard": asdict(built),
        }
        with atomic_file(self._record_path(built.name), "w") as handle:
            handle.write(canonical_json(record) + "\n")

    def load(self, planned: PlannedShard) -> BuiltShard | None:
        """Return the record of a shard if it can be trusted, else None."""
        try:
            record = json.loads(self._record_path(planned.name).read_text(encoding="utf-8"))
            shard = {
                **record["shard"],
                "rejects": [tuple(row) for row in record["shard"]["rejects"]],
            }
            built = BuiltShard(**shard)
            same = record["settings"] == self.settings and record["plan"] == planned.digest
            path = self.shards / built.name
            whole = (
                path.stat().st_size == built.bytes
                and sha256_file(self._index_path(built.name)) == record["index_sha256"]
                and (not self.options.check_sha256 or sha256_file(path) == built.sha256)
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if built.rejects and self.options.retry_rejected:
            return None
        return built if same and whole else None

    def rows(self, built: BuiltShard) -> NDArray[np.void]:
        """Return the index rows of a finished shard."""
        rows: NDArray[np.void] = np.load(self._index_path(built.name), allow_pickle=False)
        return rows

    def _record_path(self, name: str) -> Path:
        return self.folder / f"{Path(name).stem}.json"

    def _index_path(self, name: str) -> Path:
        return self.folder / f"{Path(name).stem}.index.npy"


class _Ledger:
    """Every rejected record with its reason, and the limits on how many there may be."""

    def __init__(self, options: BuildOptions, found: int, path: Path) -> None:
        self.options, self.found, self.path = options, found, path
        self.rows: list[tuple[str, str, str, str]] = []

    def add(self, rows: list[Any]) -> None:
        """Enter rejected records: record_path, record_key, reason, detail."""
        self.rows += rows

    def counts(self) -> dict[str, int]:
        """Return the number of records by reason."""
        return dict(sorted(Counter(reason for _, _, reason, _ in self.rows).items()))

    def check(self) -> None:
        """Stop as soon as a reason is sure to exceed its share of all records found.

        Raises:
            UserError: Names reason, share, most frequent detail and remedy.
        """
        for reason, count in self.counts().items():
            exceptions = self.options.max_reject_share_by_reason
            share = exceptions.get(reason, self.options.max_reject_share)
            if count < self.options.min_rejects or count <= share * self.found:
                continue
            key = "max_reject_share" + (f"_by_reason.{reason}" if reason in exceptions else "")
            details = Counter(row[3] for row in self.rows if row[2] == reason)
            self.write()
            raise UserError(
                f"{count} of {self.found} records ({count / self.found:.1%}) are rejected as "
                f"{reason}, more than build.{key}={share} allows. Most often: "
                f"{details.most_common(1)[0][0]!r}. {self.path} lists them. Mend the archive and "
                f"run again with build.retry_rejected=true, or raise build.{key}."
            )

    def write(self) -> None:
        """Write the ledger, in path order, whoever rejected a record."""
        with atomic_file(self.path, "w") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(REJECT_COLUMNS)
            writer.writerows(sorted(self.rows))


@contextmanager
def _progress(
    missing: list[PlannedShard], planned: tuple[PlannedShard, ...]
) -> Iterator[Callable[[bool], None]]:
    """Yield the callback that shows one more record done, with rate, time left, reject share."""
    total = sum(len(shard.records) for shard in missing)
    there = len(planned) - len(missing)
    kept = f" ({there} of {len(planned)} are there)" if there else ""
    rejected = 0

    with ProgressMeter(f"Building {len(missing)} shards{kept}", total, "records") as meter:

        def on_record(written: bool) -> None:
            nonlocal rejected
            rejected += not written
            done = meter.done + 1
            meter.update(done, f"{rejected / done:.2%} rejected")

        yield on_record


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

"""Resumable, deterministic build of a shard folder from a catalog."""

import fcntl
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from ecgfounder_train import __version__
from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file, sweep_partial_files
from ecgfounder_train.core.fingerprints import canonical_json, fingerprint
from ecgfounder_train.core.private_files import (
    open_private_file,
    open_private_folder,
    private_folder,
)
from ecgfounder_train.core.progress import ProgressMeter, format_duration
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records import EcgRecord
from ecgfounder_train.records.profiles import SignalProfile
from ecgfounder_train.records.record import StoredRecording
from ecgfounder_train.records.storage import is_remote
from ecgfounder_train.settings.preparing import BuildSettings
from ecgfounder_train.shards.engines import (
    ExecutorOptions,
    InlineEngine,
    Outcome,
    ShardTask,
    open_engine,
    outcomes,
)
from ecgfounder_train.shards.finished_shards import UNITS_FOLDER, FinishedShards
from ecgfounder_train.shards.increments import (
    GONE_NAME,
    PLAN_NAME,
    ShardingParams,
    StoredPlan,
    first_plan,
    next_plan,
    read_plan,
)
from ecgfounder_train.shards.index import INDEX_NAME, probe_index, write_index
from ecgfounder_train.shards.ledger import REJECTS_NAME, Ledger, RejectLimits
from ecgfounder_train.shards.manifest import (
    FINGERPRINTS,
    FORMAT_VERSION,
    MANIFEST_NAME,
    IncrementEntry,
    IndexEntry,
    Manifest,
    ShardEntry,
    Totals,
    read_manifest,
)
from ecgfounder_train.shards.plan import PlannedShard, SortedCatalog, sort_catalog
from ecgfounder_train.shards.writer import BuiltShard, RecordPlace
from ecgfounder_train.splits import PatientSplit

PLACE_NAME = "archive.json"
FAILED_NAME = "failed.log"
_SETTINGS_NAME = "build.json"
_MOST_LISTED = 20


@dataclass(frozen=True)
class BuildOptions(BuildSettings, name="build"):
    """The keys of ``configs/build``."""

    def share_of(self, reason: str) -> float:
        """Return the share of all records that may be rejected for a reason."""
        return float(self.max_reject_share_by_reason.get(reason, self.max_reject_share))

    @property
    def sharding(self) -> ShardingParams:
        """How records are drawn to shards."""
        return ShardingParams(self.seed, self.records_per_shard, self.shards_per_pool)

    @property
    def limits(self) -> RejectLimits:
        """What the ledger watches over."""
        return RejectLimits(
            self.max_reject_share, self.max_reject_share_by_reason, self.min_rejects
        )


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
    executor: ExecutorOptions | None = None,
    private: Path | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    read_ecg: Callable[[str], EcgRecord | StoredRecording] | None = None,
) -> Manifest:
    """Write shards, index and manifest of a catalog; make only what is missing.

    A shard counts as made when its unit record in the private folder says so and the file is there
    with its size (with `check_sha256`, its content). After an interruption the same arguments
    resume the build; the resulting bytes do not depend on interruptions or on the executor.

    Args:
        catalog: One row per record, as `ecgfounder_train.catalog` makes it.
        folder: Where shards, index and manifest go.
        root: What the catalog's record paths are relative to: a folder or an fsspec URL.
        profile: The signal profile; its first half is applied.
        vocabulary: What the packed labels mean.
        split: What assigned the records to train, val and test.
        secret: What made the keys.
        source_name: Name of the archive, for the manifest.
        options: The keys of ``configs/build``.
        executor: The keys of ``configs/executor``; this process alone by default.
        private: Folder for what must not be shared; ``<folder>.private`` by default.
        storage_options: Of a URL, as fsspec takes them.
        read_ecg: Reads the record at a `record_path` that is not a WFDB file; picklable.

    Raises:
        UserError: The folder was built with other settings or another catalog, too many records are
            rejected, the disk is full, shards failed, or another build holds the folder.
        KeyboardInterrupt: Ctrl-C; the message says how to resume.
    """
    folder = Path(folder)
    private = Path(private) if private is not None else private_folder(folder)
    options, executor = options or BuildOptions(), executor or ExecutorOptions()
    sorted_catalog = sort_catalog(catalog)
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
        sites=sorted_catalog.sites,
        shards=(),
        index=IndexEntry(INDEX_NAME, 0, 0, "", ""),
        totals=Totals(len(catalog), 0, sorted_catalog.unlabelled, {}, 0),
        package_version=__version__,
    )
    _make_folder(folder)
    open_private_folder(private)
    open_private_folder(private / UNITS_FOLDER)
    with only_build(private), _stop_on_sigterm():
        settings = {**_settings(draft), "format_version": FORMAT_VERSION}
        _check_same_settings(folder, private, settings)
        plan = _plan(folder, private, sorted_catalog, catalog["record_key"], options)
        for place in (folder, private, private / UNITS_FOLDER):
            sweep_partial_files(place)
        _write_notes(private, plan, settings, root, read_ecg is not None)
        rejects, unlabelled = _left_out(catalog, sorted_catalog, plan)
        found = len(catalog) + len(plan.missing_upstream)
        ledger = Ledger(options.limits, found, private / REJECTS_NAME)
        ledger.add(rejects.rows())
        finished = FinishedShards(
            folder,
            private / UNITS_FOLDER,
            fingerprint(settings),
            options.check_sha256,
            options.retry_rejected,
        )
        planned = plan.planned()
        made: dict[str, BuiltShard] = {}
        try:
            for shard in planned:
                if built := finished.load(shard):
                    made[shard.name] = built
                    ledger.add(built.rejects)
            ledger.check()
            where = RecordPlace(
                root, dict(storage_options or {}), read_ecg, num_fetches=options.num_fetches
            )
            tasks = [
                ShardTask(
                    shard,
                    folder,
                    where,
                    profile,
                    vocabulary.num_labels,
                    plan.sites,
                    Path(options.staging_dir) if options.staging_dir else None,
                )
                # Pool by pool: shards of one pool share cached directory entries and inodes.
                for shard in sorted(planned, key=_first_path)
                if shard.name not in made
            ]
            failed = _make_missing(
                tasks, len(planned), made, finished, ledger, executor, options.tries, private
            )
            ledger.write()
            if failed:
                raise _failure(failed, len(planned), private)
            # A lost worker may have left a partial file.
            sweep_partial_files(folder)
            draft = replace(
                draft,
                sites=plan.sites,
                totals=Totals(found, 0, unlabelled, ledger.counts(), 0),
                gone_upstream=len(plan.missing_upstream),
            )
            return _finish(folder, [made[shard.name] for shard in planned], finished, plan, draft)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Stopped with {len(made)} of {len(planned)} shards made in {folder}. Run the "
                "same command again to resume."
            ) from None


def _first_path(shard: PlannedShard) -> str:
    paths = shard.records["record_path"]
    return str(paths[0]) if len(paths) else ""


def _make_missing(
    tasks: list[ShardTask],
    num_planned: int,
    made: dict[str, BuiltShard],
    finished: FinishedShards,
    ledger: Ledger,
    executor: ExecutorOptions,
    tries: int,
    private: Path,
) -> list[Outcome]:
    """Make the shards of `tasks`, enter them in `made`, and return those that failed."""
    failed: list[Outcome] = []
    peak_rss_bytes, num_records = 0, sum(len(task.planned.records) for task in tasks)
    with (
        _progress(tasks, num_planned) as (on_record, on_share),
        open_engine(executor, num_records, len(tasks), private, on_record, on_share) as engine,
    ):
        for outcome in outcomes(engine, tasks, tries):
            if outcome.built is None:
                if outcome.fatal:
                    raise UserError(outcome.error)
                failed.append(outcome)
                print(
                    f"{outcome.task.planned.name} failed: {outcome.error}. Continuing with the "
                    "others.",
                    file=sys.stderr,
                )
                continue
            assert outcome.rows is not None
            built = outcome.built
            finished.save(outcome.task.planned, built, outcome.rows)
            made[built.name] = built
            if not isinstance(engine, InlineEngine):
                on_record(built.written, len(built.rejects))
            peak_rss_bytes = max(peak_rss_bytes, outcome.peak_rss_bytes)
            ledger.add(built.rejects)
            ledger.check()
    if peak_rss_bytes:
        print(f"Peak memory of a worker: {peak_rss_bytes / 2**20:,.0f} MB.", file=sys.stderr)
    return failed


def _failure(failed: list[Outcome], num_planned: int, private: Path) -> UserError:
    """Return the UserError that lists every failed shard with its reason."""
    log = private / FAILED_NAME
    failed = sorted(failed, key=lambda outcome: outcome.task.planned.number)
    with atomic_file(log, "w") as handle:
        for outcome in failed:
            handle.write(f"{outcome.task.planned.name}: {outcome.error}\n{outcome.trace}\n")
    listed = "".join(
        f"\n  {outcome.task.planned.name}: {outcome.error}" for outcome in failed[:_MOST_LISTED]
    )
    more = len(failed) - _MOST_LISTED
    return UserError(
        f"{len(failed)} of {num_planned} shards failed; the others are made:{listed}"
        + (f"\n  and {more} more" if more > 0 else "")
        + f"\nTracebacks: {log}. Remove the cause and run the same command again: it makes only "
        "what is missing."
    )


def _left_out(
    catalog: pl.DataFrame, sorted_catalog: SortedCatalog, plan: StoredPlan
) -> tuple[pl.DataFrame, int]:
    """Return the catalog's rejects and its number of unlabelled records that are in no shard.

    Records kept in shards against the tables of today count where they are.
    """
    planned = plan.rows.filter(~pl.col("gone"))["record_key"]
    rejects = sorted_catalog.rejects.filter(~pl.col("record_key").is_in(planned.implode()))
    unlabelled = len(catalog) - len(planned) - len(rejects)
    return rejects, unlabelled


def _plan(
    folder: Path,
    private: Path,
    sorted_catalog: SortedCatalog,
    record_keys: pl.Series,
    options: BuildOptions,
) -> StoredPlan:
    """Return the plan to build: the first one, or the former with what a next release adds.

    Raises:
        UserError: The tables changed in a way the options do not allow, or the plan is lost.
    """
    present = {path.name for path in folder.glob("*.tar")}
    former = read_plan(private) if present else None
    if former is None:
        plan = first_plan(sorted_catalog, options.sharding)
        if present and (folder / MANIFEST_NAME).exists():
            _check_plan_is_not_lost(folder, private)
    else:
        plan, changes = next_plan(
            former,
            sorted_catalog,
            record_keys,
            sharding=options.sharding,
            increment=options.increment,
            changed_records=options.changed_records,
            folder=folder,
        )
        if words := changes.summary():
            added = len(plan.shards) - len(former.shards)
            print(
                f"The tables have changed since the last build: {words}. {added} shards are added "
                f"to the {len(former.shards)} that exist.",
                file=sys.stderr,
            )
    unexpected = sorted(present - {name for name, _, _ in plan.shards})
    if unexpected:
        raise UserError(
            f"{folder} holds {unexpected[0]} and possibly more, of which {private} has no record. "
            "Choose an empty shards= folder or give the private folder they were built with; "
            f"{_start_over(folder, private)}."
        )
    return plan


def _check_plan_is_not_lost(folder: Path, private: Path) -> None:
    try:
        increments = len(read_manifest(folder).increments)
    except UserError:
        return
    if increments > 1:
        raise UserError(
            f"{folder} was built in {increments} increments, and {private / PLAN_NAME}, which says "
            f"what is in which shard, is missing. Restore the private folder from a backup; "
            f"{_start_over(folder, private)}."
        )


def _write_notes(
    private: Path,
    plan: StoredPlan,
    settings: Mapping[str, Any],
    root: Path | str,
    own_reader: bool,
) -> None:
    """Write plan, settings and archive location before the first shard is built."""
    plan.write(private)
    if not plan.missing_upstream.is_empty():
        with atomic_file(private / GONE_NAME) as handle:
            write_frame(plan.missing_upstream, handle)
    where = str(root) if is_remote(root) else str(Path(root).resolve())
    place = {"root": where, "own_reader": own_reader}
    for name, content in ((_SETTINGS_NAME, settings), (PLACE_NAME, place)):
        with atomic_file(private / name, "w") as handle:
            handle.write(canonical_json(dict(content)) + "\n")


def _finish(
    folder: Path,
    made: list[BuiltShard],
    finished: FinishedShards,
    plan: StoredPlan,
    draft: Manifest,
) -> Manifest:
    """Write index and manifest, last of all, and return the manifest."""
    windows = sum(built.num_samples for built in made)
    if not windows:
        totals = draft.totals
        raise UserError(
            f"Nothing to write: of {totals.found} records found, {totals.unlabelled} have no "
            f"observed label and {sum(totals.rejected.values())} are rejected "
            f"({_listed(totals.rejected)}). See {finished.folder.parent / REJECTS_NAME}."
        )
    path = folder / INDEX_NAME
    sha256 = write_index(path, len(draft.labels), map(finished.rows, made), windows)
    dropped, left_out = Counter[str](), Counter[str]()
    for built in made:
        dropped.update(built.dropped_stages)
        left_out.update(built.windows_left_out)
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
        increments=_increments(made, plan),
        dropped_stages=dict(sorted(dropped.items())),
        windows_left_out=dict(sorted(left_out.items())),
    )
    manifest.write(folder)
    return manifest


def _increments(made: list[BuiltShard], plan: StoredPlan) -> tuple[IncrementEntry, ...]:
    """Return what each increment brought; together they are all that is written."""
    entries = []
    for number in range(plan.num_increments):
        shards = [
            built
            for built, (_, _, increment) in zip(made, plan.shards, strict=True)
            if increment == number
        ]
        entries.append(
            IncrementEntry(
                shards=len(shards),
                written=sum(built.written for built in shards),
                rejected=sum(len(built.rejects) for built in shards),
                windows=sum(built.num_samples for built in shards),
            )
        )
    return tuple(entries)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot make the folder {folder}: {error.strerror}. Choose another shards= folder."
        ) from error


@contextmanager
def only_build(private: Path) -> Iterator[None]:
    """Hold the build lock of the private folder; the kernel releases it when the process ends."""
    with os.fdopen(open_private_file(private / "build.lock"), "w") as handle:
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


def _start_over(folder: Path, private: Path) -> str:
    return f"to start over, delete {folder} and {private / PLAN_NAME}"


def _check_same_settings(folder: Path, private: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a folder that holds shards of other settings.

    Raises:
        UserError: Says which setting differs.
    """
    noted = private / _SETTINGS_NAME
    former: dict[str, Any] = {}
    try:
        if (folder / MANIFEST_NAME).exists():
            former = _settings(read_manifest(folder))
    except UserError:
        # A damaged manifest is rewritten; the settings in the private folder still apply.
        if not noted.exists():
            raise
    if noted.exists():
        try:
            former |= json.loads(noted.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{noted} is damaged ({error}); {_start_over(folder, private)}, and {noted}."
            ) from error
    present = any(folder.glob("*.tar"))
    if present and not former:
        raise UserError(
            f"{folder} holds shards of which {private} has no record. Choose an empty shards= "
            f"folder or give the private folder they were built with; "
            f"{_start_over(folder, private)}."
        )
    different = [name for name in settings if name in former and former[name] != settings[name]]
    if present and different:
        raise UserError(
            f"{folder} was built with another {', '.join(different)} than this run has "
            f"({', '.join(f'{name}: {former[name]} there' for name in different)}). Shards of "
            f"different settings are never mixed: choose another shards= folder, or restore "
            f"the former settings; {_start_over(folder, private)}."
        )


@contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the build as Ctrl-C does, so that its workers are ended as well."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextmanager
def _progress(
    missing: list[ShardTask], num_planned: int
) -> Iterator[tuple[Callable[[int, int], None], Callable[[float], None]]]:
    """Yield what shows so many more written and rejected, and the share of a long recording."""
    total = sum(len(task.planned.records) for task in missing)
    there = num_planned - len(missing)
    kept = f" ({there} of {num_planned} are there)" if there else ""
    rejected = 0

    with ProgressMeter(f"Building {len(missing)} shards{kept}", total, "records") as meter:

        def on_records(num_written: int, num_rejected: int) -> None:
            nonlocal rejected
            rejected += num_rejected
            done = meter.done + num_written + num_rejected
            meter.update(done, f"{rejected / max(done, 1):.2%} rejected")

        began_s = time.monotonic()
        former = 1.0

        def on_share(share: float) -> None:
            nonlocal began_s, former
            if share < former:  # the next recording; the first piece sets the clock
                began_s, former = time.monotonic(), share
                left = ""
            else:
                elapsed_s = time.monotonic() - began_s
                left_s = elapsed_s * (1 - share) / max(share - former, 1e-9)
                left = f", {format_duration(left_s)} left"
            meter.update(meter.done, f"long recording {share:.0%}{left}")

        yield on_records, on_share


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"

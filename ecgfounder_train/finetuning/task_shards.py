"""Shards of a task: a view of prepared shards whose labels are the task's answers."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from ecgfounder_train.catalog.patients import patient_hashes
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.private_files import private_folder
from ecgfounder_train.core.pseudonyms import Secret, load_or_create_secret
from ecgfounder_train.core.ranks import is_rank_zero
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.finetuning.table import TaskTable, chosen_labels, read_table
from ecgfounder_train.finetuning.task import Task
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.packing import pack, unpack
from ecgfounder_train.labels.vocabulary import Label
from ecgfounder_train.loader.patients import patient_rows
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.shards import (
    MANIFEST_NAME,
    SEXES,
    BuildOptions,
    ShardSet,
    build_shards,
    index_dtype,
)
from ecgfounder_train.splits import PatientSplit

Float = npt.NDArray[np.float32]
SOURCE = "finetune"
_OF_THE_INDEX = ("age_years", "sex_female")
_LONGEST_WAIT_S = 6 * 3600.0


@dataclass(frozen=True)
class TaskShards(ShardSet):
    """Shards as everything downstream knows them, with a task's labels, parts and answers.

    The files stay as they are; the index is a copy in memory whose labels are the task's. Where a
    sample's signal and statistics are in a file does not depend on the labels behind them.

    Shape:
        values: (rows of the index, K) float32, NaN where not observed; quantities as the task
            transforms them, not standardised.

    Attributes:
        parts: Index rows by part.
        embedding_key: Of the signals alone: the same for every task on the same records.
        counts: What became of the table's rows.
    """

    values: Float = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    parts: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    embedding_key: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Return the index rows of a part."""
        if split not in SPLITS:
            raise UserError(f"There is no split {split!r}.{did_you_mean(split, SPLITS)}")
        return self.parts[split]

    def row_ranges(self, split: str) -> list[range]:
        """Return the same as stretches of neighbours, in order."""
        rows = self.rows(split)
        if not len(rows):
            return []
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        return [range(int(part[0]), int(part[-1]) + 1) for part in np.split(rows, breaks)]

    @cached_property
    def patients(self) -> npt.NDArray[np.bytes_]:
        """Patient key of each index row."""
        return np.asarray(self.index["patient_key"])

    def with_fraction(self, fraction: float, seed: int) -> "TaskShards":
        """Return the shards with a share of the training patients; validation and test stay whole.

        Raises:
            UserError: The share is not above 0 and at most 1, or leaves no patient.
        """
        if not 0 < fraction <= 1:
            raise UserError(f"label_fraction={fraction} must be above 0 and at most 1.")
        if fraction == 1:
            return self
        rows = patient_rows(self, fraction, seed, "label_fraction")
        prints = dict(self.manifest.fingerprints)
        prints["split"] = fingerprint([prints["split"], "patients", fraction, seed])
        manifest = replace(self.manifest, fingerprints=prints)
        return replace(self, manifest=manifest, parts={**self.parts, "train": rows})

    def summary(self) -> str:
        """Return one sentence in which every row of the table is accounted for."""
        counts = dict(self.counts)
        rows, used = counts.pop("rows"), counts.pop("used")
        lost = {key: counts[key] for key in sorted(counts) if key.startswith("not used: ")}
        listed = "".join(f" + {n:,} {key.removeprefix('not used: ')}" for key, n in lost.items())
        parts = ", ".join(f"{len(self.parts[part]):,} {part}" for part in SPLITS)
        noted = [f"{n:,} {key.replace('_', ' ')}" for key, n in counts.items() if key not in lost]
        return f"{rows:,} rows = {used:,} records used{listed}; windows: {parts}." + (
            f" Also: {'; '.join(noted)}." if noted else ""
        )


def open_task(
    task: Task, profile: SignalProfile, shards: str | None, cache: Path | str
) -> TaskShards:
    """Return a task's signals and answers.

    Args:
        task: What is asked.
        profile: How the network wants its signals.
        shards: Folder of prepared shards that hold the answers; None: the task's table, whose
            records are read once and kept in `cache`.
        cache: Folder for the signals of tables.

    Raises:
        UserError: Table and records, or shards and network, do not fit.
    """
    opened = _from_shards(task, profile, shards) if shards else _from_table(task, profile, cache)
    for part in ("train", "val"):
        if not len(opened.rows(part)):
            raise UserError(
                f"The task {task.name} has no {part} records with an answer. {opened.summary()}"
            )
    return opened


def _from_table(task: Task, profile: SignalProfile, cache: Path | str) -> TaskShards:
    table = read_table(task)
    if not task.is_regression:
        table = chosen_labels(table, task.min_positives)
    assert task.table is not None
    key = fingerprint(
        [
            str(table.root.resolve()),
            sorted(table.frame.select("record", "patient").iter_rows()),
            profile.build_fingerprint,
        ]
    )
    folder = Path(cache) / f"{Path(task.table).stem}-{key}"
    secret = _signals(folder, table, profile)
    signals = ShardSet.open(folder)
    place = {
        secret.record_key(SOURCE, record): row
        for row, record in enumerate(table.frame["record"].to_list())
    }
    of_table = np.array([place[k] for k in signals.index["record_key"].astype(str)], np.int64)
    part = table.frame["part"].to_numpy()[of_table]
    answered = np.asarray(~np.isnan(table.values).all(1))
    readable = np.zeros(len(answered), np.bool_)
    readable[of_table] = True
    counts = dict(table.counts)
    counts["used"] = int((readable & answered).sum())
    counts["not used: without a record"] = counts.pop("without_record")
    counts["not used: repeated"] = counts.pop("repeated_rows")
    for reason, number in signals.manifest.totals.rejected.items():
        counts[f"not used: {reason}"] = number
    counts["not used: without an answer"] = int((readable & ~answered).sum())
    return _view(task, profile, signals, table.labels, table.values[of_table], part, counts)


def _signals(folder: Path, table: TaskTable, profile: SignalProfile) -> Secret:
    """Read the table's records once, on rank 0, and return the secret of their keys."""
    private = private_folder(folder)
    if not is_rank_zero():
        _await(folder / MANIFEST_NAME)
        return load_or_create_secret(private / "secret.key")
    secret = load_or_create_secret(private / "secret.key")
    if not (folder / MANIFEST_NAME).is_file():
        # One label that says nothing, so that tasks on the same records share their signals.
        vocabulary = Vocabulary("signals", (Label("record", ()),))
        flag = pack(np.ones(1, np.uint8)).tobytes()
        catalog = table.frame.select(
            pl.col("record").alias("record_path"),
            pl.Series(
                "record_key", [secret.record_key(SOURCE, name) for name in table.frame["record"]]
            ),
            pl.Series(
                "patient_key",
                [secret.patient_key(SOURCE, name) for name in table.frame["patient"]],
            ),
            pl.lit(None, pl.String).alias("site"),
            pl.lit(None, pl.Float32).alias("age_years"),
            pl.lit(None, pl.String).alias("sex"),
            pl.lit(flag).alias("labels"),
            pl.lit(flag).alias("observed"),
            pl.lit("train").alias("split"),
            pl.lit(None, pl.String).alias("reject_reason"),
        )
        manifest = build_shards(
            catalog,
            folder,
            root=table.root,
            profile=profile,
            vocabulary=vocabulary,
            split=PatientSplit(name="decided by the task"),
            secret=secret,
            source_name=SOURCE,
            options=BuildOptions(),
            private=private,
        )
        print(f"Signals: {manifest.totals.summary()} Kept in {folder}.", flush=True)
    return secret


def _await(path: Path) -> None:
    """Wait until rank 0 has read the signals."""
    deadline = time.monotonic() + _LONGEST_WAIT_S
    while not path.is_file():
        if time.monotonic() > deadline:
            raise UserError(f"Rank 0 did not finish {path.parent} within six hours.")
        time.sleep(1.0)


def _from_shards(task: Task, profile: SignalProfile, folder: str) -> TaskShards:
    if task.codes_column or task.table:
        raise UserError(
            "shards=DIR takes the answers from the shards' own labels; the task names a table. "
            "Give one of the two."
        )
    shards = ShardSet.open(folder)
    manifest = shards.manifest
    if manifest.fingerprints["signal_build"] != profile.build_fingerprint:
        raise UserError(
            f"The network takes signals of profile {profile.name} ({profile.fs:g} Hz, "
            f"{len(profile.leads)} leads), the shards in {folder} hold others "
            f"({manifest.signal.get('name')}, {manifest.fs:g} Hz, {len(manifest.leads)} leads). "
            "Prepare shards with the network's signal=, or give a table (task.table), whose "
            "records are read as the network wants them."
        )
    labels, values = _own_answers(task, shards)
    part = np.array(SPLITS)[shards.index["split"]]
    if not (part == "test").any():
        part = _with_test_part(task, shards, part)
    answered = ~np.isnan(values).all(1)
    counts = {
        "rows": len(shards),
        "used": int(answered.sum()),
        "not used: without an answer": int((~answered).sum()),
    }
    if not task.is_regression:
        keys = shards.index["patient_key"].astype(str)
        frame = pl.DataFrame({"part": part, "patient": keys})
        table = chosen_labels(
            TaskTable(frame, Path(folder), labels, values, counts), task.min_positives
        )
        labels, values, counts = table.labels, table.values, table.counts
    return _view(task, profile, shards, labels, values, part, counts)


def _own_answers(task: Task, shards: ShardSet) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    manifest, index = shards.manifest, shards.index
    groups = list(manifest.vocabulary.get("groups") or [""] * len(manifest.labels))
    flags = unpack(np.asarray(index["labels"]), len(manifest.labels)).astype(np.float64)
    seen = unpack(np.asarray(index["observed"]), len(manifest.labels)) == 1
    labels: list[str] = []
    columns: list[npt.NDArray[np.float64]] = []
    for name in task.targets:
        if name in _OF_THE_INDEX:
            labels.append(name)
            columns.append(_of_the_index(index, name))
            continue
        members = [i for i, label in enumerate(manifest.labels) if name in (label, groups[i])]
        if not members:
            valid = {*manifest.labels, *filter(None, groups), *_OF_THE_INDEX}
            raise UserError(
                f"task.targets: {name!r} is not a label, group or metadata field of the shards in "
                f"{shards.folder}." + did_you_mean(name, valid)
            )
        labels += [manifest.labels[i] for i in members]
        columns += [np.where(seen[:, i], flags[:, i], np.nan) for i in members]
    if task.is_regression and set(labels) - {"age_years"}:
        raise UserError("Of prepared shards only age_years is a quantity; else give a table.")
    if not task.is_regression and "age_years" in labels:
        raise UserError("age_years is a quantity: task.kind=regression.")
    values = np.stack(columns, axis=1)
    return tuple(labels), np.log(values) if task.transform == "log" else values


def _of_the_index(index: npt.NDArray[np.void], name: str) -> npt.NDArray[np.float64]:
    if name == "age_years":
        return np.asarray(index["age_years"], np.float64)
    female = np.array([np.nan if sex == "" else float(sex == "F") for sex in SEXES])
    return np.asarray(female[index["sex"]], np.float64)


def _with_test_part(
    task: Task, shards: ShardSet, part: npt.NDArray[np.str_]
) -> npt.NDArray[np.str_]:
    """Return the parts with a test split drawn by patient from the training split."""
    keys, where = np.unique(shards.index["patient_key"].astype(str), return_inverse=True)
    rule = PatientSplit(seed=task.split_seed, val_fraction=0.0, test_fraction=task.test_fraction)
    drawn = rule.draw(patient_hashes(keys.tolist()).to_numpy())[where] == SPLITS.index("test")
    return np.where(drawn & (part == "train"), "test", part)


def _view(
    task: Task,
    profile: SignalProfile,
    shards: ShardSet,
    labels: tuple[str, ...],
    values: npt.NDArray[np.float64],
    part: npt.NDArray[np.str_],
    counts: Mapping[str, int],
) -> TaskShards:
    observed = ~np.isnan(values)
    index = np.zeros(len(shards), index_dtype(len(labels)))
    for name in index.dtype.names or ():
        if name not in ("labels", "observed", "split", "spare"):
            index[name] = shards.index[name]
    yes = np.zeros_like(observed) if task.is_regression else values == 1
    index["labels"] = pack(yes.astype(np.uint8))
    index["observed"] = pack(observed.astype(np.uint8))
    for number, name in enumerate(SPLITS):
        index["split"][part == name] = number
    old = shards.manifest
    answers = hashlib.sha256(np.nan_to_num(values, nan=-1e30).tobytes()).hexdigest()[:16]
    parts = hashlib.sha256(index["split"].tobytes()).hexdigest()[:16]
    known = Vocabulary.load(task.vocabulary) if task.vocabulary else None
    manifest = replace(
        old,
        fingerprints={
            **old.fingerprints,
            "vocabulary": fingerprint([task.fingerprint, list(labels)]),
            "signal_profile": profile.fingerprint,
            "split": parts,
            "answers": answers,
        },
        vocabulary={
            # A vocabulary that is kept whole keeps its name: external sets know it by that.
            "name": known.name if known and known.labels == labels else task.name,
            "labels": list(labels),
            "groups": [""] * len(labels),
            "options": {"task": task.name, "kind": task.kind},
            "fingerprint": task.fingerprint,
        },
        signal=profile.to_dict(),
    )
    has_answer = observed.any(1)
    return TaskShards(
        shards.folder,
        manifest,
        index,
        values=values.astype(np.float32),
        parts={name: np.flatnonzero((part == name) & has_answer) for name in SPLITS},
        embedding_key=fingerprint([old.index.sha256, profile.fingerprint]),
        counts=counts,
    )

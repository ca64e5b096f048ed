"""Check that the files of a table's records exist, before anything is built.

An archive is often here in part: some folds of PTB-XL, some folders of MIMIC. A few hundred records
are looked at first; only where one of them is missing are the folders listed.
"""

from pathlib import Path

import numpy as np
import polars as pl

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.records.reader import read_header
from ecgfounder_train.records.sources.table import SourceTable
from ecgfounder_train.records.storage import is_remote

PRESENT_NAME = "records_present.txt"
_NUM_PROBES = 256
_MOST_FOLDS = 1000


def missing_files(table: SourceTable) -> pl.DataFrame | None:
    """Return the records with `is_missing`: a header or signal file is not below the root.

    None: the probe found all of them; or the source reads other files, or a URL.
    """
    if table.read_ecg is not None or is_remote(table.root):
        return None
    root = Path(table.root)
    records = table.records.select("record_path", "fold").filter(
        pl.col("record_path").is_not_null()
    ).collect()  # fmt: skip
    paths = records["record_path"]
    if not len(paths):
        return None
    folders: dict[str, set[str]] = {}
    probes = np.linspace(0, len(paths) - 1, min(_NUM_PROBES, len(paths))).astype(int)
    if all(_is_there(root, paths[int(place)], None) for place in probes):
        return None
    there = [_is_there(root, path, folders) for path in paths]
    return records.with_columns(~pl.Series("is_missing", there))


def _is_there(root: Path, path: str, folders: dict[str, set[str]] | None) -> bool:
    """Return whether header and signal files exist; with `folders` by listing each folder once."""
    folder, _, stem = path.rpartition("/")

    def exists(name: str) -> bool:
        if folders is None:
            place = root / folder
            return any((place / each).is_file() for each in (name, name.upper()))
        if folder not in folders:
            try:
                folders[folder] = {entry.name.lower() for entry in (root / folder).iterdir()}
            except OSError:
                folders[folder] = set()
        return name.lower() in folders[folder]

    if not (exists(f"{stem}.hea") or (root / f"{path}.HEA").is_file()):
        return False
    if any(exists(stem + suffix) for suffix in (".dat", ".mat", ".DAT", ".MAT")):
        return True
    try:
        header = read_header(root / path)
    except RejectedRecordError:
        return True  # damaged rather than missing: the reader says how
    return all(exists(spec.file_name) for spec in header.signals)


def require_files(table: SourceTable, share: float, min_rejects: int, private: Path) -> str:
    """Return the warning about missing files, "" if none is missing.

    Args:
        table: A source's records.
        share: Of the records, above which nothing is prepared (`build.max_reject_share`).
        min_rejects: Fewer are never too many (`build.min_rejects`).
        private: Folder for the list of the records that are there.

    Raises:
        UserError: More are missing. It names what prepares the part that is there.
    """
    records = missing_files(table)
    if records is None:
        return ""
    missing = int(records["is_missing"].sum())
    said = (
        f"The files of {missing:,} of {records.height:,} records are not below {table.root} (a "
        "header or a signal file is missing)"
    )
    if missing < min_rejects or missing <= share * records.height:
        return f"{said}; they will be rejected."
    present = records.filter(~pl.col("is_missing"))
    if present.is_empty():
        raise UserError(f"{said}. Fetch them, or check source.root.")
    path = private / PRESENT_NAME
    with atomic_file(path, "w") as handle:
        handle.write("\n".join(present["record_path"]) + "\n")
    folds = _complete_folds(records)
    raise UserError(
        f"{said}. Fetch them, or prepare the part that is there: "
        + (f"source.folds=[{','.join(folds)}] (the folds that are complete), or " if folds else "")
        + f"source.records={path} (the {present.height:,} records that are there)."
    )


def _complete_folds(records: pl.DataFrame) -> list[str]:
    by_fold = (
        records.drop_nulls("fold").group_by("fold").agg(pl.col("is_missing").any()).sort("fold")
    )
    if by_fold.height > _MOST_FOLDS:
        return []
    return [str(fold) for fold, missing in by_fold.iter_rows() if not missing]

"""Tables of HEEDB 5.0 at their true size, without signals: minutes and constant memory.

The row-by-row writer takes 211 s of CPU time per million rows. Here it writes a pool of patients
once, and copies of the pool follow with other patient ids and file names: a copied patient has
the dates and statements of its model, but is a patient of its own. What is missing or blank is not
copied but drawn again over all rows, in exactly the published numbers.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.sources.heedb_published import PUBLISHED
from ecgfounder_train.simulate.archive import write_archive
from ecgfounder_train.simulate.recordings import ID_PRIME, patient_id
from ecgfounder_train.simulate.settings import SITES
from ecgfounder_train.simulate.tables import MERGE_COLUMNS, METADATA_COLUMNS

_TABLES = {
    "metadata": "metadata/metadata.csv",
    "acquisition": "12SL_diagnoses/diagnoses_acquisition.csv",
    "v24": "12SL_diagnoses/diagnoses_v24.csv",
    "dictionary": "12SL_diagnoses/diagnoses_dictionary.csv",
}
_FILLERS = {
    "MaritalStatusDSC": ("Married", "Single", "Widowed", "Divorced", ""),
    "ReligionDSC": ("Catholic", "None", "Protestant", "Jewish", "Unknown", ""),
    "VeteranStatusDSC": ("No", "Yes", ""),
    "EducationLevelDSC": ("Graduated - High School or GED", "Some college/vocational", ""),
    "GenderIdentityDSC": ("Male", "Female", ""),
    "PrimaryCauseOfDeathDSC": ("", "", "", "ATHEROSCLEROTIC HEART DISEASE OF NATIVE VESSELS"),
    "PrimaryCauseOfDeathUNOS": ("", "", "", "CARDIOVASCULAR: OTHER"),
}
"""Texts of the columns that no stage reads: a row of I0001 has 291 bytes on average."""
_TAIL_STEP = 7919  # a prime: copies of one MUSE name get other last digits


@dataclass(frozen=True)
class _Pool:
    """One site's tables as the row-by-row writer makes them, side by side."""

    rows: pl.DataFrame
    """One row per record: the metadata columns, codes of all readers, `patient` and `is_old`."""
    num_patients: int
    merged: NDArray[np.int64]
    """Patients that were registered twice."""


def write_full_tables(
    root: Path,
    rows: Mapping[str, int] | None = None,
    *,
    seed: int = 0,
    pool_patients: int = 20_000,
    num_workers: int = 1,
    on_rows: Callable[[str, int, int], None] | None = None,
) -> dict[str, dict[str, int]]:
    """Write metadata, acquisition, v24 and dictionary tables and the merge history below `root`.

    Args:
        rows: Metadata rows by site; the published numbers by default. Other numbers keep the
            published shares of everything that is missing.
        pool_patients: Patients that are simulated; all others are copies of them.
        on_rows: Called with (site, rows written, rows in all).

    Returns:
        By site what was written, under the names `heedb_published` and the source use.

    Raises:
        UserError: `root` exists and is not empty, or a number of rows is below 100.
    """
    wanted = dict(rows or {site: PUBLISHED[site]["rows"] for site in SITES})
    if any(number < 100 for number in wanted.values()):
        raise UserError("Full tables need at least 100 rows per site.")
    if root.is_dir() and any(root.iterdir()):
        raise UserError(f"{root} is not empty; name another folder or delete it.")
    written = {}
    with tempfile.TemporaryDirectory(prefix="pool-", dir=_made(root)) as folder:
        pool_root = Path(folder) / "pool"
        never = {"missing_over_read": 0.0, "missing_acquisition": 0.0, "missing_v24": 0.0}
        sites = {site: {**never, "empty_codes": 0.0} for site in SITES}
        sites["I0006"]["share"] = 0.3
        write_archive(
            {
                "out": pool_root,
                "num_patients": pool_patients,
                "seed": seed,
                "num_workers": num_workers,
                "write_signals": False,
                "blank_patient_ids": 0,
                "missing_metadata": 0.0,
                "sites": sites,
            }
        )
        history = _made(root / "PatientMergeHistory") / "PatientMergeHistory.csv"
        with history.open("wb") as merges:
            merges.write((",".join(MERGE_COLUMNS) + "\n").encode())
            for site, number in wanted.items():
                pool = _read_pool(pool_root, site, seed)
                written[site] = _write_site(root, site, number, pool, seed, merges, on_rows)
                dictionary = Path("ECG", site, _TABLES["dictionary"])
                (root / dictionary).write_bytes((pool_root / dictionary).read_bytes())
    return written


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read_pool(root: Path, site: str, seed: int) -> _Pool:
    def table(name: str) -> pl.DataFrame:
        return pl.read_csv(root / "ECG" / site / _TABLES[name], infer_schema=False).fill_null("")

    metadata, acquisition, v24 = table("metadata"), table("acquisition"), table("v24")
    # The row-by-row writer adds one row to each table per record, so they lie side by side.
    assert metadata.height == acquisition.height == v24.height
    joined = pl.concat(
        [
            metadata,
            acquisition.drop("FileName"),
            v24.select(pl.col("codes").alias("codes_v24")),
        ],
        how="horizontal",
    )
    ids = metadata["BDSPPatientID"].str.replace(r"\.0$", "").cast(pl.Int64).to_numpy()
    merges = pl.read_csv(root / "PatientMergeHistory" / "PatientMergeHistory.csv")
    is_old = np.isin(ids, merges[MERGE_COLUMNS[0]].to_numpy())
    people, patient = np.unique(ids - ID_PRIME * is_old, return_inverse=True)
    rng = np.random.default_rng([seed, SITES.index(site), 1])
    filled = [
        pl.Series(name, texts)[rng.integers(len(texts), size=len(people))[patient].tolist()]
        for name, texts in _FILLERS.items()
        if name in metadata.columns
    ]
    return _Pool(
        joined.with_columns(filled).with_columns(
            pl.Series("patient", patient), pl.Series("is_old", is_old)
        ),
        len(people),
        np.unique(patient[is_old]),
    )


def _write_site(
    root: Path,
    site: str,
    num_rows: int,
    pool: _Pool,
    seed: int,
    merges: IO[bytes],
    on_rows: Callable[[str, int, int], None] | None,
) -> dict[str, int]:
    gone = _missing(site, num_rows, seed)
    counts: Counter[str] = Counter({"rows": num_rows, **{k: int(v.sum()) for k, v in gone.items()}})
    paths = {name: root / "ECG" / site / path for name, path in _TABLES.items()}
    for path in paths.values():
        _made(path.parent)
    with (
        paths["metadata"].open("wb") as metadata,
        paths["acquisition"].open("wb") as acquisition,
        paths["v24"].open("wb") as v24,
    ):
        for copy in range(-(-num_rows // pool.rows.height)):
            start = copy * pool.rows.height
            block = _restamp(pool, site, copy, seed).head(num_rows - start)
            part = slice(start, start + block.height)
            block = block.with_columns(
                pl.Series(f"{name}_gone", mask[part]) for name, mask in gone.items()
            )
            _count(block, counts)
            header = copy == 0
            _metadata(block, site).write_csv(metadata, include_header=header)
            _acquisition(block).write_csv(acquisition, include_header=header)
            _v24(block, site).write_csv(v24, include_header=header)
            present = set(block["patient"].to_list())
            chosen = np.array([number for number in pool.merged if number in present], np.int64)
            new = patient_id(seed, site, copy * pool.num_patients + chosen)
            pl.DataFrame({"old": new + ID_PRIME, "new": new}).write_csv(
                merges, include_header=False
            )
            counts["merged_patient_pairs"] += len(chosen)
            if on_rows:
                on_rows(site, start + block.height, num_rows)
    counts["acquisition_rows"] = num_rows - counts.pop("acquisition")
    counts["v24_rows"] = num_rows - counts.pop("v24")
    counts["v24_rows_empty"] = counts.pop("v24_empty")
    counts["v24_newline_in_file_name"] = counts["v24_rows"] if site == "I0001" else 0
    return dict(sorted(counts.items()))


def _missing(site: str, num_rows: int, seed: int) -> dict[str, NDArray[np.bool_]]:
    """Return which rows lack what, in the published numbers (or shares, of other row counts)."""
    published = PUBLISHED[site]
    rng = np.random.default_rng([seed, SITES.index(site), 2])
    absent = {
        "acquisition": published["rows"] - published["acquisition_rows"],
        "over_read_missing": published["over_read_missing"],
        "v24": published["rows"] - published["v24_rows"],
        "v24_empty": published["v24_rows_empty"],
    }
    masks: dict[str, NDArray[np.bool_]] = {}
    for name, number in absent.items():
        mask = np.zeros(num_rows, np.bool_)
        # A cell can only be blank where there is a row.
        row_gone = masks.get({"over_read_missing": "acquisition", "v24_empty": "v24"}.get(name, ""))
        among = np.arange(num_rows) if row_gone is None else np.flatnonzero(~row_gone)
        mask[rng.choice(among, round(number * num_rows / published["rows"]), replace=False)] = True
        masks[name] = mask
    blank = np.zeros(num_rows, np.bool_)
    blank[: published["patient_id_blank"]] = True
    return {**masks, "patient_id_blank": blank}


def _restamp(pool: _Pool, site: str, copy: int, seed: int) -> pl.DataFrame:
    """Return the pool's rows as other patients' records."""
    numbers = copy * pool.num_patients + pool.rows["patient"].to_numpy()
    ids = patient_id(seed, site, numbers) + ID_PRIME * pool.rows["is_old"].to_numpy()
    rows = pool.rows.with_columns(pl.Series("id", ids).cast(pl.String))
    name = pl.col("FileName")
    if site == "I0001":
        renamed = name.str.replace(r"/de_\d+_", "/de_{}_")
        file_name = renamed.str.splitn("{}", 2).struct
        named = file_name.field("field_0") + pl.col("id") + file_name.field("field_1")
    else:
        tail = name.str.slice(-5).cast(pl.Int64) + copy * _TAIL_STEP
        tail = (tail % 100_000).cast(pl.String).str.zfill(5)
        named = name.str.head(-5) + tail
    return rows.with_columns(named.alias("FileName")).with_columns(
        pl.col("FileName").str.split("_").list.last().alias("FileID")
    )


def _count(block: pl.DataFrame, counts: Counter[str]) -> None:
    days = pl.col("AgeAtAcquisition").cast(pl.Float64, strict=False)
    sex = "SexDSC" if "SexDSC" in block.columns else "Sex"
    found = block.select(
        days.is_null().sum().alias("age_missing"),
        (days <= 0).sum().alias("age_not_positive"),
        (days / 365.25 > 89).sum().alias("age_capped"),
        (pl.col(sex) == "").sum().alias("sex_unknown"),
        pl.col("patient").n_unique().alias("patients"),
    )
    counts.update(found.row(0, named=True))


def _metadata(block: pl.DataFrame, site: str) -> pl.DataFrame:
    number = pl.col("id")
    if PUBLISHED[site]["patient_id_blank"]:  # the blank id makes the whole column floats
        number = pl.when("patient_id_blank_gone").then(pl.lit("")).otherwise(number + ".0")
    return block.with_columns(number.alias("BDSPPatientID")).select(
        # Blank cells are written as nothing, not as a pair of quotes.
        pl.when(pl.col(name) != "").then(pl.col(name)).alias(name)
        for name in METADATA_COLUMNS[site]
    )


def _acquisition(block: pl.DataFrame) -> pl.DataFrame:
    unread = pl.col("over_read_missing_gone")
    return block.filter(~pl.col("acquisition_gone")).select(
        "FileName",
        "codes_software",
        pl.when(~unread).then("codes_physician").alias("codes_physician"),
        pl.when(~unread).then("jaccard_index").alias("jaccard_index"),
    )


def _v24(block: pl.DataFrame, site: str) -> pl.DataFrame:
    name = pl.col("FileName")
    if site == "I0001":
        name = (pl.lit(".") + name + ".hea\n").alias("FileName")
    return block.filter(~pl.col("v24_gone")).select(
        name, pl.when(~pl.col("v24_empty_gone")).then("codes_v24").alias("codes")
    )

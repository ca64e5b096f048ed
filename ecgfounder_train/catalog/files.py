"""The catalog as a parquet file, with its fingerprints inside. It holds paths: keep it private."""

import json
from pathlib import Path

import polars as pl

from ecgfounder_train.catalog.build import CATALOG_COLUMNS, LEFT_OUT_NAME, Catalog
from ecgfounder_train.catalog.facts import write_facts
from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import canonical_json

FORMAT_VERSION = 1
UNKNOWN_NAME = "unknown_statements.csv"
JOINED_NAME = "joined_patients.csv"
_KEY = "ecgfounder_train.catalog"


def write_catalog(path: Path | str, catalog: Catalog) -> Path:
    """Write the catalog so that it is whole or absent, and return its path.

    Its facts, the statements that no label knows, the patients whom a merge joined over several
    splits, and the files left out go beside it.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "labels": list(catalog.labels),
        "fingerprints": dict(catalog.fingerprints),
        "summary": dict(catalog.summary),
        "warnings": list(catalog.warnings),
    }
    with atomic_file(path) as handle:
        catalog.frame.write_parquet(handle, metadata={_KEY: canonical_json(header)})
    if catalog.facts is not None:
        write_facts(Path(path).parent, catalog.facts)
    if catalog.unknown_statements is not None:
        with atomic_file(Path(path).with_name(UNKNOWN_NAME)) as handle:
            write_frame(catalog.unknown_statements, handle)
    if catalog.files_left_out is not None:
        with atomic_file(Path(path).with_name(LEFT_OUT_NAME)) as handle:
            write_frame(catalog.files_left_out, handle)
    if catalog.joined_patients is not None:
        with atomic_file(Path(path).with_name(JOINED_NAME)) as handle:
            write_frame(_joined_patients(catalog.frame, catalog.joined_patients), handle)
    return Path(path)


def _joined_patients(frame: pl.DataFrame, joined: pl.DataFrame) -> pl.DataFrame:
    """Return key, the splits that the ids or records fell into, and the split of each patient."""
    hashes = pl.col("canonical_hash").alias("patient_hash")
    listed = joined.select(hashes, pl.col("parts").alias("splits"), "part")
    keys = frame.select("patient_hash", "patient_key").join(listed, on="patient_hash", how="semi")
    named = listed.join(keys.unique(), on="patient_hash", how="left")
    return named.select("patient_key", "splits", pl.col("part").alias("split")).sort("patient_key")


def read_catalog(path: Path | str) -> Catalog:
    """Return the catalog in `path`.

    Raises:
        UserError: Missing, damaged, no catalog, or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"No catalog at {path}. scripts/prepare.py writes it.")
    try:
        header = json.loads(pl.read_parquet_metadata(path).get(_KEY, "{}"))
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}). Delete it and run prepare again."
        ) from error
    if header.get("format_version") != FORMAT_VERSION or frame.columns != list(CATALOG_COLUMNS):
        raise UserError(
            f"{path} is not a catalog of format {FORMAT_VERSION} "
            f"(found {header.get('format_version')}). Run prepare again to write a new one."
        )
    return Catalog(
        frame,
        tuple(header["labels"]),
        header["fingerprints"],
        header["summary"],
        tuple(header["warnings"]),
    )

"""A small WFDB archive with every kind of record, and a build of it in a process of its own."""

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import yaml

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord, SignalProfile, read_record
from ecgfounder_train.shards import BuildOptions, ExecutorOptions, Manifest, build_shards
from ecgfounder_train.splits import PatientSplit

SECRET = Secret(bytes(range(32)))
VOCABULARY = Vocabulary.load("ptbxl_super5")
SPLIT = PatientSplit()
FS = 100.0
STEM = "4711{:05d}_20190317"
"""Native ids as HEEDB has them: patient id and date."""


class Archive(NamedTuple):
    """Where the records are, their catalog, and the shards an undisturbed build made."""

    root: Path
    catalog: pl.DataFrame
    shards: Path


def profile(**changes: Any) -> SignalProfile:
    configs = Path(__file__).resolve().parents[2] / "configs"
    config = yaml.safe_load((configs / "signal" / "zscore.yaml").read_text())
    config["fs"] = FS
    config["windows"]["policy"] = "consecutive"
    return SignalProfile.from_config({**config, **changes})


def options(**changes: Any) -> BuildOptions:
    return BuildOptions(**{"records_per_shard": 6, "seed": 3, **changes})


def write_archive(root: Path, num_records: int = 60) -> pl.DataFrame:
    """Write the records and return their catalog.

    Of every 20 records: 0 and 1 last 25 s (two windows), 2 is too short, 3 has a flat lead, 4 has
    no header, 5 has no patient, 6 and 7 have no label, 8 has no part.
    """
    import wfdb  # two seconds of imports that the workers of a build need not wait for

    rng = np.random.default_rng(5)
    rows = []
    for number in range(num_records):
        kind = number % 20
        duration_s = {0: 25, 1: 25, 2: 2}.get(kind, 10)
        signal = rng.normal(0, 0.3, (int(duration_s * FS), 12)).round(3)
        if kind == 3:
            signal[:, 4] = 0.0
        stem = STEM.format(number)
        folder = root / f"S{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        if kind != 4:
            wfdb.wrsamp(
                stem,
                fs=FS,
                units=["mV"] * 12,
                sig_name=list(STANDARD_LEADS),
                p_signal=signal,
                fmt=["16"] * 12,
                adc_gain=[1000.0] * 12,
                baseline=[0] * 12,
                comments=["Age: 57", "Sex: Female"],
                write_dir=str(folder),
            )
        values = rng.integers(0, 2, 5).astype(np.uint8)
        observed = np.zeros(5, np.uint8) if kind in (6, 7) else np.ones(5, np.uint8)
        part = "test" if number % 5 == 4 else "val" if number % 7 == 6 else "train"
        rows.append(
            {
                "record_path": f"{folder.name}/{stem}",
                "record_key": SECRET.record_key("test", stem),
                "patient_key": SECRET.patient_key("test", stem[:9]),
                "site": folder.name,
                "age_years": None if number % 2 else 90.0,
                "sex": None if number % 2 else "M",
                "split": None if kind == 8 else part,
                "labels": np.packbits(values).tobytes(),
                "observed": np.packbits(observed).tobytes(),
                "reject_reason": "blank_patient_id" if kind == 5 else None,
            }
        )
    schema = {"age_years": pl.Float32, "labels": pl.Binary, "observed": pl.Binary}
    return pl.DataFrame(rows, schema_overrides=schema)


def build(catalog: pl.DataFrame, root: Path, folder: Path, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "root": root,
        "profile": profile(),
        "vocabulary": VOCABULARY,
        "split": SPLIT,
        "secret": SECRET,
        "source_name": "test",
        "options": options(),
        **changes,
    }
    return build_shards(catalog, folder, **arguments)


@dataclass(frozen=True)
class SlowReader:
    """Reads a record as from a slow file system, so that there is a middle to strike in."""

    root: str
    delay_s: float

    def __call__(self, record_path: str) -> EcgRecord:
        time.sleep(self.delay_s)
        return read_record(Path(self.root) / record_path)


def main(root: str, folder: str, settings: str = "{}") -> int:
    """Build as a script would; the catalog lies beside the archive.

    `settings` is JSON: `executor` and `options` hold keys of their groups, `max_file_bytes` limits
    every file, `read_delay_s` makes every record slow.
    """
    asked = json.loads(settings)
    if "max_file_bytes" in asked:
        limit = int(asked["max_file_bytes"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    catalog = pl.read_parquet(Path(root).with_suffix(".parquet"))
    changes = {
        "options": options(**asked.get("options", {})),
        "executor": ExecutorOptions.from_config(asked.get("executor", {})),
    }
    if "read_delay_s" in asked:
        changes["read_ecg"] = SlowReader(root, float(asked["read_delay_s"]))
    try:
        build(catalog, Path(root), Path(folder), **changes)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(error, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

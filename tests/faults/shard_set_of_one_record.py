"""A set of a few shards, each of one made-up record, built in a tenth of a second."""

from pathlib import Path

import numpy as np
import polars as pl

from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.vocabulary import Label
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord, SignalProfile
from ecgfounder_train.shards import BuildOptions, Manifest, build_shards
from ecgfounder_train.splits import PatientSplit
from ecgfounder_train.weights.trained_model import OFFICIAL_SIGNAL

SECRET = Secret(bytes(range(32)))
FS = 100.0


def read(record_path: str) -> EcgRecord:
    rng = np.random.default_rng(int(record_path))
    signal = rng.normal(0, 0.3, (12, 1000)).astype(np.float32)
    return EcgRecord(signal, tuple(STANDARD_LEADS), FS)


def catalog(num_records: int) -> pl.DataFrame:
    flags = np.packbits(np.ones(1, np.uint8)).tobytes()
    splits = ("train", "val", "test")
    rows = [
        {
            "record_path": str(number),
            "record_key": SECRET.record_key("made", str(number)),
            "patient_key": SECRET.patient_key("made", str(number)),
            "site": "A",
            "age_years": 60.0,
            "sex": "F",
            "labels": flags,
            "observed": flags,
            "split": splits[number % 3],
            "reject_reason": None,
        }
        for number in range(num_records)
    ]
    schema = {"age_years": pl.Float32, "reject_reason": pl.String}
    return pl.DataFrame(rows, schema_overrides=schema)


def build(folder: Path, num_records: int = 3) -> Manifest:
    return build_shards(
        catalog(num_records),
        folder,
        root=folder,
        profile=SignalProfile.from_config({**OFFICIAL_SIGNAL, "fs": FS}),
        vocabulary=Vocabulary("made", (Label("A", ()),)),
        split=PatientSplit(),
        secret=SECRET,
        source_name="made",
        options=BuildOptions(records_per_shard=1),
        read_ecg=read,
    )


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}

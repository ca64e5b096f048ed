"""Tiny shard sets and the settings that train on them in a second, for several folders of tests.

The records are real WFDB files and the shards come from the real writer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import wfdb
import yaml
from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records import STANDARD_LEADS, SignalProfile
from ecgfounder_train.shards import BuildOptions, ShardSet, build_shards
from ecgfounder_train.splits import PatientSplit

REPOSITORY = Path(__file__).resolve().parents[1]
SECRET = Secret(bytes(range(32)))
FS = 100.0
PATIENT = "4711{:05d}"
"""Native ids look like HEEDB's, so that a test can search files for them."""

TINY_MODEL = (
    "model=net1d_1m",
    "+model.widths=[16,32]",
    "+model.depths=[1,1]",
    "+model.base_filters=8",
    "+model.stage_strides=[4,4]",
)


def profile(name: str = "zscore", **changes: Any) -> SignalProfile:
    """Return a profile of configs/signal at 100 Hz."""
    config = yaml.safe_load((REPOSITORY / "configs" / "signal" / f"{name}.yaml").read_text())
    config["fs"] = FS
    config["windows"]["policy"] = "consecutive"
    return SignalProfile.from_config({**config, **changes})


def write_record(root: Path, number: int, duration_s: float, values: np.ndarray) -> str:
    """Write one record, each positive label as a sine of its own, and return its path."""
    rng = np.random.default_rng(number)
    time = np.arange(int(duration_s * FS)) / FS
    signal = rng.normal(0, 0.2, (12, len(time))) + rng.normal(0, 0.5, (12, 1))
    for label in np.flatnonzero(values):
        signal += rng.uniform(0.2, 1, (12, 1)) * np.sin(2 * np.pi * 3 * (label + 1) * time)
    stem = f"{PATIENT.format(number)}_20190317"
    folder = root / f"S{number % 2}"
    folder.mkdir(parents=True, exist_ok=True)
    wfdb.wrsamp(
        stem,
        fs=FS,
        units=["mV"] * 12,
        sig_name=list(STANDARD_LEADS),
        p_signal=signal.T.round(3),
        fmt=["16"] * 12,
        adc_gain=[1000.0] * 12,
        baseline=[0] * 12,
        write_dir=str(folder),
    )
    return f"{folder.name}/{stem}"


def write_archive(root: Path, num_records: int = 100) -> pl.DataFrame:
    """Write records and return their catalog.

    Of every ten, the first is 6 s long (padded), the second 20 s (two windows) and the third has
    labels that nobody observed.
    """
    rng = np.random.default_rng(5)
    rows = []
    for number in range(num_records):
        values = rng.integers(0, 2, 5).astype(np.uint8)
        observed = np.ones(5, np.uint8)
        observed[: 2 if number % 10 == 2 else 0] = 0
        path = write_record(root, number, {0: 6.0, 1: 20.0}.get(number % 10, 10.0), values)
        part = ("val", "train", "train", "test", "train", "val", "train")[number % 7]
        rows.append(
            {
                "record_path": path,
                "record_key": SECRET.record_key("test", path),
                "patient_key": SECRET.patient_key("test", PATIENT.format(number)),
                "site": path.split("/")[0],
                "age_years": None if number % 3 else 70.0,
                "sex": (None, "F", "M")[number % 3],
                "split": part,
                "labels": np.packbits(values).tobytes(),
                "observed": np.packbits(observed).tobytes(),
                "reject_reason": None,
            }
        )
    schema = {"age_years": pl.Float32, "labels": pl.Binary, "observed": pl.Binary}
    return pl.DataFrame(rows, schema_overrides=schema)


def build(catalog: pl.DataFrame, root: Path, folder: Path, **changes: Any) -> ShardSet:
    """Return the shards of a catalog of `write_archive`."""
    arguments: dict[str, Any] = {
        "root": root,
        "profile": profile(),
        "vocabulary": Vocabulary.load("ptbxl_super5"),
        "split": PatientSplit(),
        "secret": SECRET,
        "source_name": "test",
        "options": BuildOptions(records_per_shard=12, seed=3),
        **changes,
    }
    build_shards(catalog, folder, **arguments)
    return ShardSet.open(folder)


def tiny_overrides(shards: ShardSet | Path, runs: Path, run: str, *more: str) -> list[str]:
    """Return the arguments of scripts/pretrain.py for a tiny run; later ones win."""
    folder = shards.folder if isinstance(shards, ShardSet) else shards
    arguments = [
        f"shards={folder}",
        f"paths.runs={runs}",
        f"run={run}",
        *TINY_MODEL,
        "trainer=cpu",
        "trainer.num_threads=1",
        "data.global_batch_size=16",
        "budget.max_epochs=2",
        "log_every_steps=1",
    ]
    return _merged([*arguments, *more])


def tiny_config(shards: ShardSet | Path, runs: Path, run: str, *more: str) -> dict[str, Any]:
    """Return the composed config of a tiny run, for calling `train` in this process."""
    config = compose_config("pretrain", tiny_overrides(shards, runs, run, *more))
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _merged(arguments: Sequence[str]) -> list[str]:
    last = {argument.split("=")[0]: argument for argument in arguments}
    return list(last.values())

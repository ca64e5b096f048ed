"""Genuine files to damage, and the functions that commands read them with."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.training_log import read_training_log
from ecgfounder_train.inference.find import find_records
from ecgfounder_train.inference.inputs import InputOptions
from ecgfounder_train.inference.pipeline import OK, prepare
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.vocabulary import Label
from ecgfounder_train.loader.reader import SampleReader
from ecgfounder_train.models import create_model
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord, SignalProfile
from ecgfounder_train.shards import BuildOptions, ShardSet, build_shards, verify
from ecgfounder_train.splits import PatientSplit
from ecgfounder_train.training.runs import list_runs
from ecgfounder_train.weights.bundle import DESCRIPTION_FILE, WEIGHTS_FILE, describe, write_bundle
from ecgfounder_train.weights.checkpoint import newest_whole
from ecgfounder_train.weights.outputs import Output
from ecgfounder_train.weights.trained_model import OFFICIAL_SIGNAL, TrainedModel

_FS = 500.0
_LABELS = ("A", "B")
_NUM_PREPARED = 5


@dataclass(frozen=True)
class Target:
    """A file to damage.

    Attributes:
        name: What the table calls it.
        path: The file, which is overwritten by its mutants.
        read: Reads it as a command does; True: it was read, False: it was rejected.
    """

    name: str
    path: Path
    read: Callable[[], bool]


def genuine_targets(folder: Path, further: Sequence[Path]) -> list[Target]:
    """Return recordings of every format, weights, a shard set and a run, made in a folder."""
    profile = SignalProfile.from_config({**OFFICIAL_SIGNAL, "fs": 100.0})
    return [
        *_recordings(folder / "recordings", further, profile),
        *_weights(folder / "weights"),
        *_shards(folder / "shards"),
        *_run(folder / "runs"),
    ]


def _signal() -> np.ndarray:
    time = np.arange(int(10 * _FS)) / _FS
    one, two = np.sin(2 * np.pi * 1.3 * time), np.sin(2 * np.pi * 1.3 * time + 0.5)
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    chest = [one * factor + two * 0.3 for factor in (-0.8, -0.5, 0.3, 1.0, 1.2, 0.9)]
    return np.stack([*limbs, *chest]).round(3).astype(np.float32)


def _recordings(folder: Path, further: Sequence[Path], profile: SignalProfile) -> list[Target]:
    import h5py
    import wfdb

    ecg, made = _signal(), folder / "made"
    made.mkdir(parents=True)
    np.save(made / "one.npy", ecg)
    np.save(made / "many.npy", np.stack([ecg[:, :2500], ecg[:, 2500:]]))
    np.savez_compressed(
        made / "archive.npz", signal=ecg, fs=_FS, leads=np.array(STANDARD_LEADS), unit="mV"
    )
    with h5py.File(made / "packed.h5", "w") as file:
        data = file.create_dataset("ecg", data=ecg, compression="gzip", chunks=(12, 500))
        data.attrs["fs"], data.attrs["leads"] = _FS, ",".join(STANDARD_LEADS)
    leads = dict(zip(STANDARD_LEADS, ecg, strict=True))
    columns = {"time": np.arange(ecg.shape[1]) / _FS, **leads}
    pl.DataFrame(columns).write_csv(made / "table.csv")
    for name, form in (("plain", "16"), ("packed", "212")):
        wfdb.wrsamp(
            name, fs=_FS, units=["mV"] * 12, sig_name=list(STANDARD_LEADS), p_signal=ecg.T,
            fmt=[form] * 12, write_dir=str(made),
        )  # fmt: skip
    targets = []
    for source in sorted([*made.iterdir(), *further]):
        place = folder / f"of_{source.name}"
        place.mkdir()
        np.savez(place / "good.npz", signal=ecg, fs=_FS, leads=np.array(STANDARD_LEADS), unit="mV")
        shutil.copy(source, place)
        for beside in source.parent.glob(f"{source.stem}.*"):
            if {source.suffix, beside.suffix} == {".hea", ".dat"}:
                shutil.copy(beside, place)
        read = partial(_predict_folder, place, profile)
        targets.append(Target(source.name, place / source.name, read))
    return targets


def _predict_folder(folder: Path, profile: SignalProfile) -> bool:
    """Prepare the recordings of a folder as predict does; the good one must be among them."""
    found = find_records(str(folder), InputOptions(fs=_FS))
    good = next(item for item in found.records if Path(item.name).name.startswith("good"))
    assert prepare(good, profile).status == OK, "the good recording of the batch was lost"
    others = [item for item in found.records if item is not good]
    prepared = [prepare(item, profile) for item in others[:_NUM_PREPARED]]
    return bool(prepared) and all(item.status == OK for item in prepared)


def _weights(folder: Path) -> list[Target]:
    torch.manual_seed(0)
    small: dict[str, Any] = {"widths": [16, 32], "depths": [1, 1], "base_filters": 8}
    state = create_model("net1d_1m", 12, len(_LABELS), **small).state_dict()
    description = describe(
        {"name": "net1d_1m", **small}, 12, "all", tuple(map(Output, _LABELS)),
        {"name": "mine", "labels": list(_LABELS)}, OFFICIAL_SIGNAL, None, "MIT", {},
    )  # fmt: skip
    write_bundle(folder / "bundle", description, state)
    torch.save({"state_dict": state, "ecg_model": description}, folder / "official.pth")
    return [
        Target(name, path, partial(_loads, path))
        for name, path in (
            (WEIGHTS_FILE, folder / "bundle" / WEIGHTS_FILE),
            (DESCRIPTION_FILE, folder / "bundle" / DESCRIPTION_FILE),
            ("official.pth", folder / "official.pth"),
        )
    ]


def _loads(path: Path) -> bool:
    return bool(TrainedModel.load(path).labels)


def _shards(folder: Path) -> list[Target]:
    signal = _signal()
    secret, record = Secret(bytes(32)), EcgRecord(signal, tuple(STANDARD_LEADS), _FS)
    flags = np.packbits(np.ones(1, np.uint8)).tobytes()
    catalog = pl.DataFrame(
        [
            {
                "record_path": str(number),
                "record_key": secret.record_key("made", str(number)),
                "patient_key": secret.patient_key("made", str(number)),
                "site": "A",
                "age_years": 60.0,
                "sex": "F",
                "labels": flags,
                "observed": flags,
                "split": "train",
                "reject_reason": None,
            }
            for number in range(6)
        ],
        schema_overrides={"age_years": pl.Float32, "reject_reason": pl.String},
    )
    build_shards(
        catalog,
        folder,
        root=folder,
        profile=SignalProfile.from_config({**OFFICIAL_SIGNAL, "fs": 100.0}),
        vocabulary=Vocabulary("made", (Label("A", ()),)),
        split=PatientSplit(),
        secret=secret,
        source_name="made",
        options=BuildOptions(records_per_shard=3),
        read_ecg=lambda _: record,
    )
    names = ("manifest.json", "index.npy", "train-000000.tar")
    return [Target(name, folder / name, partial(_reads_shards, folder)) for name in names]


def _reads_shards(folder: Path) -> bool:
    found_nothing = verify(folder).ok
    shards = ShardSet.open(folder)
    reader = SampleReader(shards, on_bad_sample="report")
    samples = reader.read(shards.rows("train"))
    reader.close()
    return found_nothing and not samples.bad


def _run(folder: Path) -> list[Target]:
    run = RunDirectory(folder / "made")
    run.path.mkdir(parents=True)
    config = "# python scripts/pretrain.py\nshards: set\ndata: {cache_dir: null}\npaths: {}\n"
    run.config_file.write_text(config)
    state = {"state": "finished", "samples_seen": 10, "total_samples": 10, "best": {"value": 0.5}}
    run.write_state(state)
    run.metrics_file.write_text("samples_seen,train/loss\n" + "5,0.7\n10,0.6\n")
    run.failure_file.write_text(json.dumps({"error": "none"}))
    run.checkpoints.mkdir()
    newest = run.checkpoints / "step-000000010.ckpt"
    torch.save({"format_version": 1, "model": {"weight": torch.zeros(100)}}, newest)
    read = partial(_reads_run, run)
    paths = (run.config_file, run.state_file, run.metrics_file, run.failure_file, newest)
    return [Target(path.name, path, read) for path in paths]


def _reads_run(run: RunDirectory) -> bool:
    """Read all files of a run as `runs`, `evaluate`, `ablate` and a resumed training do."""
    list_runs(run.path.parent)
    read_training_log(run.metrics_file)
    refused = newest_whole(run) is None
    for read in (run.read_config, run.read_state):
        try:
            read()
        except UserError:
            refused = True
    return not refused

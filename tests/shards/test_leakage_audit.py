"""The leakage audit: planted duplicates are found, in whatever disguise, and nothing else."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import wfdb
import yaml
from tiny_set import build

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.records import STANDARD_LEADS, SignalProfile
from ecgfounder_train.shards import BuildOptions
from ecgfounder_train.shards.audit import COLUMNS, audit

REPOSITORY = Path(__file__).resolve().parents[2]
FS = 500
NUM_RECORDS = 40
LEAD_GAINS = np.array([0.6, 1.0, 0.4, -0.8, 0.3, 0.7, -0.5, 0.2, 0.9, 1.3, 1.2, 0.8])[:, None]


def ecg(seed: int) -> np.ndarray:
    """Beats at irregular times, wander and noise: (12, 5000) in mV."""
    rng = np.random.default_rng(seed)
    time = np.arange(10 * FS) / FS
    beats = np.cumsum(rng.normal(rng.uniform(0.6, 1.1), 0.05, 20)) - rng.uniform(0, 1)
    since = time - beats[:, None]
    qrs = np.exp(-((since / rng.uniform(0.01, 0.02)) ** 2)).sum(axis=0)
    wave = np.exp(-(((since - 0.3) / 0.06) ** 2)).sum(axis=0)
    gains = LEAD_GAINS * rng.uniform(0.6, 1.4, (12, 1))
    wander = rng.uniform(0, 0.3, (12, 1)) * np.sin(2 * np.pi * 0.2 * time + rng.uniform(0, 6))
    return gains * qrs + 0.3 * gains * wave + wander + rng.normal(0, 0.01, (12, len(time)))


def profile(name: str, **changes) -> SignalProfile:
    config = yaml.safe_load((REPOSITORY / "configs" / "signal" / f"{name}.yaml").read_text())
    return SignalProfile.from_config({**config, **changes})


def make_shards(folder: Path, signals, parts, patients, how, secret=None):
    """Build shards of these signals; a record's key tells its number."""
    rows = []
    archive = folder / "archive"
    archive.mkdir(parents=True)
    labels = np.packbits(np.ones(5, np.uint8)).tobytes()
    for number, (signal, part, patient) in enumerate(zip(signals, parts, patients, strict=True)):
        wfdb.wrsamp(
            f"r{number:03d}", fs=FS, units=["mV"] * 12, sig_name=list(STANDARD_LEADS),
            p_signal=signal.T, fmt=["16"] * 12, adc_gain=[1000.0] * 12, baseline=[0] * 12,
            write_dir=str(archive),
        )  # fmt: skip
        rows.append(
            {
                "record_path": f"r{number:03d}", "record_key": key(number),
                "patient_key": patient, "site": "A", "age_years": 60.0, "sex": "F",
                "split": part, "labels": labels, "observed": labels, "reject_reason": None,
            }
        )  # fmt: skip
    catalog = pl.DataFrame(
        rows,
        schema_overrides={"age_years": pl.Float32, "labels": pl.Binary, "observed": pl.Binary,
                          "reject_reason": pl.String},
    )  # fmt: skip
    secret = secret or Secret(bytes(range(32)))
    options = BuildOptions(records_per_shard=12, seed=3)
    build(catalog, archive, folder / "shards", profile=how, secret=secret, options=options)
    return folder / "shards"


def key(number: int) -> str:
    return f"{number:032x}"


def patient(number: int) -> str:
    return f"{number + 1000:032x}"


PARTS = ["train", "train", "val", "test"] * (NUM_RECORDS // 4)
PATIENTS = [patient(number) for number in range(NUM_RECORDS)]


def clean_signals() -> list[np.ndarray]:
    return [ecg(seed) for seed in range(NUM_RECORDS)]


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    return make_shards(folder, clean_signals(), PARTS, PATIENTS, profile("zscore"))


def found(report, kind):
    return {
        frozenset((leak.record_key, leak.other_record_key))
        for leak in report.leaks
        if leak.kind == kind
    }


def test_a_clean_set_has_no_pairs(clean):
    report = audit(clean)
    assert report.ok
    assert report.num_windows == NUM_RECORDS
    assert report.counts() == {"patient": 0, "identical": 0, "near_identical": 0}


def test_planted_duplicates_and_patients_are_found_and_nothing_else(tmp_path):
    signals = clean_signals()
    patients = list(PATIENTS)
    rng = np.random.default_rng(9)
    signals[2] = signals[0].copy()  # val = train: the same bytes
    signals[3] = 0.7 * signals[1] + 0.2  # scaled and shifted up
    signals[7] = signals[4] + rng.normal(0, 0.02, signals[4].shape)  # noisier
    signals[10] = np.roll(signals[8], 2, axis=1)  # 4 ms later
    signals[5] = signals[9].copy()  # train = train: no leak
    patients[14] = patients[12]  # val and train
    patients[16] = patients[17]  # train and train: no leak
    patients[20] = patients[22] = ""  # nobody
    folder = make_shards(tmp_path, signals, PARTS, patients, profile("zscore"))
    report = audit(folder)
    assert found(report, "identical") == {frozenset((key(0), key(2)))}
    assert found(report, "near_identical") == {
        frozenset((key(1), key(3))), frozenset((key(4), key(7))), frozenset((key(8), key(10)))
    }  # fmt: skip
    assert found(report, "patient") == {frozenset((key(12), key(14)))}
    assert not report.ok
    assert all(leak.correlation > 0.95 for leak in report.leaks if leak.kind == "near_identical")
    assert "2 windows name no patient" in str(report)

    report.write(tmp_path / "pairs.csv")
    with open(tmp_path / "pairs.csv") as handle:
        rows = list(csv.reader(handle))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 6
    assert {tuple(sorted((row[2], row[4]))) for row in rows[1:]} == {
        ("train", "val"), ("test", "train")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("zscore", {"fs": 100}),
        ("official", {}),
        ("paper", {"fs": 100}),
        ("author", {}),
        ("zscore", {"leads": ["I"]}),
        ("official", {"leads": ["V2", "aVF"], "fs": 250}),
        ("zscore", {"duration_s": 5}),
    ],
)
def test_an_external_set_is_recognised_at_any_rate_profile_and_choice_of_leads(
    clean, tmp_path, name, changes
):
    fresh = [ecg(1000 + seed) for seed in range(12)]
    inside = [0.5 * ecg(seed) for seed in (0, 1, 2, 3)]  # two of train, one of val, one of test
    if "duration_s" in changes:  # windows of another length begin at the same sample
        config = yaml.safe_load((REPOSITORY / "configs" / "signal" / "zscore.yaml").read_text())
        changes = {**changes, "windows": {**config["windows"], "policy": "first"}}
    other = make_shards(
        tmp_path,
        fresh + inside,
        ["test"] * 16,
        [patient(5000 + number) for number in range(16)],
        profile(name, **changes),
        Secret(bytes(range(1, 33))),
    )
    report = audit(clean, other)
    # Key 3 is in the test part: a record of two test sets is no leak.
    assert found(report, "near_identical") | found(report, "identical") == {
        frozenset((key(number), key(12 + number))) for number in (0, 1, 2)
    }
    assert "different secrets" in str(report)
    assert {leak.other_part for leak in report.leaks} == {"other set"}


def test_the_command_prints_counts_and_exits_with_one_if_there_is_a_pair(clean, tmp_path):
    def run(*arguments):
        command = [sys.executable, str(REPOSITORY / "scripts" / "verify.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    result = run(f"shards={clean}", "audit=true", f"pairs={tmp_path / 'none.csv'}")
    assert result.returncode == 0, result.stderr
    assert "40 windows compared; pairs across parts: 0 patient" in result.stdout
    assert (tmp_path / "none.csv").read_text().strip() == ",".join(COLUMNS)

    same = run(f"shards={clean}", "audit=true", f"against={clean}")
    assert same.returncode == 1
    assert "30 patient, 30 identical, 0 near_identical" in same.stdout


def test_silence_is_counted_and_not_taken_for_a_duplicate(tmp_path):
    signals = clean_signals()[:12]
    for number in range(4):
        slow = 0.1 * np.sin(2 * np.pi * 0.2 * np.arange(5000) / FS + number)
        signals[number] = np.tile(np.round(slow, 3), (12, 1))
    folder = make_shards(tmp_path, signals, PARTS[:12], PATIENTS[:12], profile("zscore"))
    report = audit(folder)
    assert report.ok
    assert "4 windows hold no signal" in str(report)


def test_a_threshold_the_hash_cannot_serve_is_refused(clean):
    for value in (0.5, "high"):  # as the command line gives it
        with pytest.raises(UserError, match=f"min_correlation={value}"):
            audit(clean, min_correlation=value)  # type: ignore[arg-type]


@pytest.mark.real_data
def test_real_recordings_hold_no_pairs_but_planted_ones(real_data, tmp_path):
    paths = sorted((real_data / "ptbxl500").rglob("*.hea"))[:60]
    signals = []
    for path in paths:
        signal = wfdb.rdrecord(str(path.with_suffix(""))).p_signal.T
        if signal.std(axis=1).min() > 0:
            signals.append(signal)
    signals.append(1.3 * signals[0])
    parts = ["train"] * (len(signals) - 1) + ["test"]
    people = [patient(number) for number in range(len(signals))]
    report = audit(make_shards(tmp_path, signals, parts, people, profile("official")))
    assert [(leak.record_key, leak.other_record_key) for leak in report.leaks] == [
        (key(0), key(len(signals) - 1))
    ]

"""Published data sets in their own layouts, through scripts/evaluate.py with tiny trained runs."""

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import wfdb
from omegaconf import OmegaConf
from tiny_set import build, tiny_config

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.pseudonyms import load_or_create_secret
from ecgfounder_train.evaluation.evaluation import Evaluation
from ecgfounder_train.evaluation.external import signal_of
from ecgfounder_train.evaluation.predict import predict_split, predict_windows
from ecgfounder_train.evaluation.settings import EvaluationSettings
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.metrics.predictions import read_predictions
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.weights.trained_model import TrainedModel

CPU = torch.device("cpu")


def runs_of(name, tiny_set, folder, *lead_choices):
    """Train on the tiny archive with the labels of a vocabulary, of which five patterns occur."""
    vocabulary = Vocabulary.load(name)

    def widened(cell):
        few = np.unpackbits(np.frombuffer(cell, np.uint8), count=5)
        return np.packbits(np.resize(few, vocabulary.num_labels)).tobytes()

    wide = tiny_set.catalog.with_columns(
        pl.col(column).map_elements(widened, return_dtype=pl.Binary)
        for column in ("labels", "observed")
    )
    shards = build(wide, tiny_set.root, folder / "shards", vocabulary=vocabulary)
    train(tiny_config(shards, folder, "twelve", "budget.max_epochs=1"))
    for choice in lead_choices:
        more = f"data.lead_choice={choice}"
        train(tiny_config(shards, folder, "single", "budget.max_epochs=1", more))
    return folder


@pytest.fixture(scope="module")
def runs_150(tiny_set, tmp_path_factory):
    return runs_of("ecgfounder150", tiny_set, tmp_path_factory.mktemp("hundred_fifty"))


@pytest.fixture(scope="module")
def runs_ptbxl(tiny_set, tmp_path_factory):
    return runs_of("ptbxl_all71", tiny_set, tmp_path_factory.mktemp("ptbxl"), "published")


def config_of(verb, *overrides):
    return OmegaConf.to_container(compose_config(verb, list(overrides)), resolve=True)


def opened(config, run):
    return Evaluation(EvaluationSettings.from_config(config), run)


def call(verb, config):
    """Call what the script calls once its command line is read."""
    importlib.import_module(f"ecgfounder_train.commands.{verb}").main(config)


def evaluate(folder, run, name, root, *more):
    """Return what scripts/evaluate.py leaves of an external set: page, table, predictions."""
    settings = (f"paths.runs={folder}", f"run={run}", "device=cpu", f"source.root={root}",
                f"experiment=eval_{name}", "mistakes=1", *more)  # fmt: skip
    config = config_of("evaluate", *settings)
    call("evaluate", config)
    evaluation = opened(config, run)
    table = pl.read_csv(evaluation.folder / "report.csv")
    stored = read_predictions(evaluation.folder / "predictions.parquet")
    return evaluation, (evaluation.folder / "report.html").read_text(), table, stored


def answers(stored, label):
    """Return 1, 0 or None (open) per row."""
    column = stored.labels.index(label)
    known = stored.observed[:, column]
    return [int(v) if k else None for v, k in zip(stored.targets[:, column], known, strict=True)]


def heart(number, fs, duration_s, beats_hz):
    """Return an artificial ECG in mV whose leads differ and fit together, in standard order."""
    rng = np.random.default_rng(number)
    time = np.arange(int(duration_s * fs)) / fs
    waves = np.stack([np.sin(2 * np.pi * k * beats_hz * time + k) for k in (1, 2, 5)])
    one, two, *chest = rng.uniform(-0.5, 0.5, (8, 3)) @ waves + rng.normal(0, 0.02, (8, len(time)))
    limb = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.stack([*limb, *chest])


def logits_by_hand(trained, signal, fs, labels):
    record = EcgRecord(signal.astype(np.float32), STANDARD_LEADS, fs, None, ())
    (logits,) = predict_windows(trained, [trained.profile.apply(record)], CPU, 4)
    return logits[[trained.labels.index(label) for label in labels]]


CODE_COLUMNS = ("1dAVb", "RBBB", "LBBB", "SB", "AF", "ST")
CODE_LABELS = {
    "1dAVb": "WITH 1ST DEGREE AV BLOCK",
    "RBBB": "RIGHT BUNDLE BRANCH BLOCK",
    "LBBB": "LEFT BUNDLE BRANCH BLOCK",
    "SB": "SINUS BRADYCARDIA",
    "AF": "ATRIAL FIBRILLATION",
    "ST": "SINUS TACHYCARDIA",
}


@pytest.mark.parametrize(
    ("order", "stored_per_mv"), [(("aVR", "aVL", "aVF"), 1), (("aVL", "aVF", "aVR"), 10)]
)
def test_code_test_goes_through_in_either_published_order_and_unit(
    runs_150, tmp_path, order, stored_per_mv
):
    h5py = pytest.importorskip("h5py")
    number = 24
    rng = np.random.default_rng(3)
    hearts = [heart(n, 400, 7 if n % 4 == 1 else 10, 1 + n % 3 / 2) for n in range(number)]
    columns = [*range(3), *(STANDARD_LEADS.index(name) for name in order), *range(6, 12)]
    tracings = np.zeros((number, 4096, 12))
    for n, signal in enumerate(hearts[:-1]):  # the last one stays empty
        start = (4096 - signal.shape[1]) // 2
        tracings[n, start : start + signal.shape[1]] = signal[columns].T * stored_per_mv
    with h5py.File(tmp_path / "ecg_tracings.hdf5", "w") as file:
        file["tracings"] = tracings
    gold = rng.integers(0, 2, (number, 6))
    (tmp_path / "annotations").mkdir()
    with open(tmp_path / "annotations" / "gold_standard.csv", "w", newline="") as handle:
        csv.writer(handle).writerows([CODE_COLUMNS, *gold.tolist()])
    with open(tmp_path / "attributes.csv", "w", newline="") as handle:
        rows = [(95 if n == 0 else 30 + n, "FM"[n % 2]) for n in range(number)]
        csv.writer(handle).writerows([("age", "sex"), *rows])

    evaluation, html, table, stored = evaluate(runs_150, "twelve", "code_test", tmp_path)
    assert "24 records with an answer = 23 evaluated + 1 rejected (1 all_zero)." in html
    assert "6 of the model&#x27;s 150 labels have an answer here" in html
    assert "CODE-test annotates six findings only" in html
    assert set(stored.labels) == set(CODE_LABELS.values())
    for column, name in enumerate(CODE_COLUMNS):
        assert answers(stored, CODE_LABELS[name]) == gold[:-1, column].tolist()
        row = table.filter(pl.col("label") == CODE_LABELS[name])
        assert row["num_positives"].item() in (None, gold[:-1, column].sum()), "None: below 10"
    assert len(set(stored.patient_key.tolist())) == 23 and None not in stored.patient_key.tolist()
    assert stored.age_years[:2].tolist() == [90, 31] and stored.sex[:2].tolist() == ["F", "M"]
    assert set(stored.native_fs.tolist()) == {400}
    for n in (0, 1, 2):
        shown, fs, _ = signal_of(evaluation.subject.trained, evaluation.target.external, n, 0)
        assert np.ptp(shown) == pytest.approx(np.ptp(hearts[n]), rel=0.1) and fs == 100
        expected = logits_by_hand(evaluation.subject.trained, hearts[n], 400, stored.labels)
        np.testing.assert_allclose(stored.logits[n], expected, atol=1e-3)


MIMIC_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")
NORMAL = ["Sinus rhythm", "Normal ECG"]
MIMIC_REPORTS = [
    NORMAL,
    ["Sinus rhythm with PAC(s)", "Inferior infarct - age undetermined", "Abnormal ECG"],
    ["Atrial fibrillation with rapid ventricular response", "Left axis deviation", "Abnormal ECG"],
    ["Sinus bradycardia", "Possible inferior infarct - age undetermined", "Borderline ECG"],
    ["Sinus rhythm, no acute ischemic changes", "Consider left ventricular hypertrophy"],
    ["Sinus rhythm with borderline 1st degree A-V block", "No atrial fibrillation"],
    ["Atrial fibrillation or flutter", "RBBB with left anterior fascicular block"],
    ["Pacemaker rhythm - no further analysis"],
    ["--- Recording unsuitable for analysis - please repeat ---"],
    [],
]


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    """Ten studies of five people (two each), of which one has no report, and one no table row."""
    root = tmp_path_factory.mktemp("mimic-iv-ecg")
    studies, machine, hearts = [], [], {}
    for number in range(len(MIMIC_REPORTS) + 1):
        subject, study = 10000032 + number // 2, 40000100 + number
        folder = root / "files" / f"p{str(subject)[:4]}" / f"p{subject}" / f"s{study}"
        folder.mkdir(parents=True)
        hearts[study] = heart(number, 500, 10, 1 + number % 3 / 2)
        columns = [STANDARD_LEADS.index(name) for name in MIMIC_LEADS]
        wfdb.wrsamp(
            str(study), fs=500, units=["mV"] * 12, sig_name=list(MIMIC_LEADS),
            p_signal=hearts[study][columns].T, fmt=["16"] * 12, adc_gain=[200.0] * 12,
            baseline=[0] * 12, comments=[f"<subject_id>: {subject}"], write_dir=str(folder),
        )  # fmt: skip
        path = (folder / str(study)).relative_to(root).as_posix()
        studies.append([subject, study, study, "2180-07-23 08:44:00", path])
        if number < len(MIMIC_REPORTS):
            reports = [*MIMIC_REPORTS[number], *[""] * 18][:18]
            machine.append([subject, study, 6848296, studies[-1][3], *reports, "0.005-150 Hz", 659])
    with open(root / "record_list.csv", "w", newline="") as handle:
        head = ("subject_id", "study_id", "file_name", "ecg_time", "path")
        csv.writer(handle).writerows([head, *studies])
    with open(root / "machine_measurements.csv", "w", newline="") as handle:
        names = [f"report_{n}" for n in range(18)]
        head = ["subject_id", "study_id", "cart_id", "ecg_time", *names, "bandwidth", "rr_interval"]
        csv.writer(handle).writerows([head, *machine])
    return root, hearts


def test_mimic_goes_through_with_leads_by_name_and_reports_read_as_sentences(runs_150, mimic):
    root, hearts = mimic
    evaluation, html, table, stored = evaluate(runs_150, "twelve", "mimic", root)
    # The study that could not be analysed, the one without a report and the one without a row
    # answer nothing, nor does the paced one that states no label.
    assert "7 records with an answer = 7 evaluated + 0 rejected." in html
    assert "4 more have no answer to any evaluated label" in html
    expected = {
        "SINUS RHYTHM": [1, 1, 0, 0, 1, 1, 0],
        "NORMAL ECG": [1, 0, 0, 0, 0, 0, 0],
        "ABNORMAL ECG": [0, 1, 1, 0, 0, 0, 0],
        "BORDERLINE ECG": [0, 0, 0, 1, 0, 0, 0],
        "SINUS BRADYCARDIA": [0, 0, 0, 1, 0, 0, 0],
        "ATRIAL FIBRILLATION": [0, 0, 1, 0, 0, 0, None],
        "WITH RAPID VENTRICULAR RESPONSE": [0, 0, 1, 0, 0, 0, 0],
        "PREMATURE ATRIAL COMPLEXES": [0, 1, 0, 0, 0, 0, 0],
        "INFERIOR INFARCT": [0, 1, 0, None, 0, 0, 0],
        "LEFT VENTRICULAR HYPERTROPHY": [0, 0, 0, 0, None, 0, 0],
        "WITH 1ST DEGREE AV BLOCK": [0, 0, 0, 0, 0, None, 0],
        "RBBB AND LEFT ANTERIOR FASCICULAR BLOCK": [0, 0, 0, 0, 0, 0, 1],
        "RIGHT BUNDLE BRANCH BLOCK": [0, 0, 0, 0, 0, 0, 1],
    }
    for label, wanted in expected.items():
        assert answers(stored, label) == wanted, label
        row = table.filter(pl.col("label") == label)
        assert row["num_positives"].item() in (None, wanted.count(1)), "None: below 10"
        assert row["num_observed"].item() == 7 - wanted.count(None)
    patients = stored.patient_key.tolist()
    assert [patients.index(key) for key in patients] == [0, 0, 2, 2, 4, 4, 6]
    assert "clustered by patient" in html and "clustered by record" not in html
    for row, study in enumerate(list(hearts)[:7]):
        signal, fs, leads = signal_of(
            evaluation.subject.trained, evaluation.target.external, row, 0
        )
        assert leads == STANDARD_LEADS and fs == 100
        avl = STANDARD_LEADS.index("aVL")
        likeness = [np.corrcoef(signal[avl], lead[::5])[0, 1] for lead in hearts[study][3:6]]
        assert np.argmax(likeness) == 1 and likeness[1] > 0.99
        # The archive's steps of 5 microvolts move logits a little, exchanged leads far more.
        by_hand = logits_by_hand(evaluation.subject.trained, hearts[study], 500, stored.labels)
        np.testing.assert_allclose(stored.logits[row], by_hand, atol=5e-3)


@pytest.mark.parametrize("name", ["mimic", "code_test"])
def test_other_vocabularies_learn_which_map_is_missing_or_use_theirs(
    runs_ptbxl, mimic, tmp_path, name
):
    if name == "mimic":
        with pytest.raises(
            UserError, match="no label map from the vocabulary ptbxl_all71 to mimic"
        ):
            evaluate(runs_ptbxl, "twelve", "mimic", mimic[0])
    else:
        (tmp_path / "README").write_text("an empty download")
        with pytest.raises(
            UserError, match=r"gold_standard\.csv does not exist\. source\.root must be"
        ):
            evaluate(runs_ptbxl, "twelve", "code_test", tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("data_set", "run"), [("cinc2017", "single"), ("ludb", "twelve")], ids=["cinc2017", "ludb"]
)
def test_real_excerpts_go_through_with_the_command_of_the_readme(
    runs_ptbxl, real_data, data_set, run
):
    _, html, table, stored = evaluate(runs_ptbxl, run, data_set, real_data / data_set)
    assert np.isfinite(stored.logits).all()
    if data_set == "cinc2017":
        assert table["label"].to_list() == ["SR", "AFIB"]
        assert table["num_positives"].to_list() == [300, 150]
        assert "were pooled to 570 records" in html
        assert "30 more have no answer" in html
    else:
        assert "40 records with an answer = 40 evaluated + 0 rejected." in html
        positives = table.filter(pl.col("label") == "SR")["num_positives"].item()
        assert positives is None or positives > 20, "None: fewer than 10 negatives"
    assert "clustered by record" in html


@pytest.fixture(scope="module")
def fold_9(real_data, tmp_path_factory):
    """Forty records of PTB-XL's fold 9 with their rows of the table."""
    root = tmp_path_factory.mktemp("fold9") / "ptbxl"
    command = [sys.executable, str(real_data / "unpack_ptbxl.py"), str(root), "--folds", "9",
               "--limit", "40"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    path = root / "ptbxl_database.csv"
    table = pl.read_csv(path, infer_schema=False)
    restored = {p.relative_to(root).with_suffix("").as_posix() for p in root.rglob("*.hea")}
    table.filter(pl.col("filename_lr").is_in(restored)).write_csv(path)
    return root


@pytest.mark.real_data
@pytest.mark.parametrize("vocabulary", ["ptbxl_all71", "ecgfounder150"])
def test_ptbxl_fold_9_goes_through_with_its_own_labels_and_through_the_map(
    fold_9, request, vocabulary
):
    runs = request.getfixturevalue("runs_150" if vocabulary == "ecgfounder150" else "runs_ptbxl")
    _, html, table, stored = evaluate(runs, "twelve", "ptbxl", fold_9, "split=val")
    assert "40 records with an answer = 40 evaluated + 0 rejected." in html
    assert stored.num_records == 40 and set(stored.split.tolist()) == {"val"}
    assert np.isfinite(stored.logits).all()
    cells = pl.read_csv(fold_9 / "ptbxl_database.csv")["scp_codes"]
    sinus = {"ptbxl_all71": "SR", "ecgfounder150": "SINUS BRADYCARDIA"}[vocabulary]
    code = {"ptbxl_all71": "'SR'", "ecgfounder150": "'SBRAD'"}[vocabulary]
    row = table.filter(pl.col("label") == sinus)
    stated = cells.str.contains(code, literal=True).sum()
    assert row["num_positives"].item() in (None, stated), "None: below 10"
    own = vocabulary == "ptbxl_all71"
    assert ("map ptbxl_all71, own" if own else "map ecgfounder150.ptbxl, ours") in html


@pytest.mark.real_data
def test_ptbxl_read_by_record_gives_the_numbers_of_its_shards(runs_ptbxl, real_data, tmp_path):
    source = [
        "source=ptbxl_subset",
        f"source.root={real_data / 'ptbxl500'}",
        f"source.table={real_data / 'ptbxl100' / 'ptbxl_database.csv'}",
    ]
    folder: Path = tmp_path / "shards"
    call("prepare", config_of("prepare", *source, f"shards={folder}", "labels=ptbxl_all71",
                              "signal=zscore", "signal.fs=100",
                              "signal.windows.policy=consecutive"))  # fmt: skip
    secret = folder.with_name("shards.private") / "secret.key"
    config = config_of("evaluate", f"paths.runs={runs_ptbxl}", "run=twelve", "device=cpu", *source,
                       "external.name=ptbxl", "external.native_labels=[ptbxl_all71]",
                       f"secret={secret}")  # fmt: skip
    evaluation = opened(config, "twelve")
    direct = evaluation.evaluate().predictions
    assert direct.num_records == 110 and evaluation.target.label_map.variant == "own"
    assert set(direct.native_fs.tolist()) == {500}, "converted to the model's rate"

    trained = TrainedModel.load(evaluation.subject.checkpoint)
    shards = ShardSet.open(folder)
    place = {str(key): row for row, key in enumerate(direct.record_key)}
    found = []
    for split in ("train", "val", "test"):
        if not len(shards.rows(split)):
            continue
        part = predict_split(trained, shards, split, CPU, 16)
        rows = [place[str(key)] for key in part.record_key]
        assert part.labels == direct.labels
        np.testing.assert_allclose(direct.logits[rows], part.logits, atol=1e-5)
        np.testing.assert_array_equal(direct.targets[rows], part.targets)
        np.testing.assert_array_equal(direct.observed[rows], part.observed)
        known = [key for key in direct.patient_key[rows].tolist() if key is not None]
        assert set(known) <= set(part.patient_key.tolist())
        found += rows
    assert sorted(found) == list(range(110))
    assert direct.targets.sum() > 110 and np.ptp(direct.logits, axis=0).max() > 1e-3
    assert load_or_create_secret(secret).fingerprint == shards.manifest.fingerprints["secret"]

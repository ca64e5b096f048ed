"""Tables and reports: nothing undefined looks like a number, nothing leaves that must not."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation import (
    Strip,
    label_notes,
    label_table,
    summarise,
    write_report,
    write_strips_page,
)
from ecgfounder_train.evaluation.tables import NEEDS_PREVIOUS_ECG
from ecgfounder_train.evaluation.training_log import read_training_log
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.weights.decisions import Decisions

LABELS = ("rare", "common", "absent", "always", "unseen", "few")


@pytest.fixture
def predictions():
    rng = np.random.default_rng(11)
    targets = (rng.random((400, 6)) < [0.04, 0.4, 0, 1, 0.5, 0]).astype(np.uint8)
    targets[:3, 5] = 1
    observed = np.ones_like(targets)
    observed[:, 4] = 0
    observed[:50, 1] = 0
    logits = rng.normal(size=(400, 6)) + 2 * targets - 1
    return Predictions.create(
        LABELS,
        [f"{index:032x}" for index in range(400)],
        logits,
        targets,
        observed,
        patient_key=[f"p{index // 2}" for index in range(400)],
        split="val",
        run_name="demo",
        fingerprints={"vocabulary": "0123456789abcdef"},
        provenance={"checkpoint": "best"},
    )


def test_label_table_gives_nan_and_the_reason_where_undefined(predictions):
    table = label_table(predictions, {"rare": "needs a previous ECG"})
    assert table["label"].to_list() == list(LABELS)
    assert table["undefined_reason"].to_list() == [
        None,
        None,
        "no positives",
        "no negatives",
        "never observed",
        None,
    ]
    assert table["auroc"].is_nan().to_list() == [False, False, True, True, True, False]
    assert table["num_observed"].to_list() == [400, 350, 400, 400, 0, 400]
    assert table["note"].to_list() == ["needs a previous ECG"] + [None] * 5


def test_summary_counts_the_labels_it_averages(predictions):
    table = label_table(predictions)
    summary = summarise(table)
    area = table["auroc"].to_numpy()
    assert summary.auroc == (pytest.approx(area[[0, 1, 5]].mean()), 3)
    assert summary.auroc_enough == (pytest.approx(area[:2].mean()), 2)
    assert summary.to_dict()["macro_auroc_num_labels"] == 3


def test_notes_come_from_the_columns_of_the_vocabulary():
    notes = label_notes(Vocabulary.load("ecgfounder150"))
    assert notes["NORMAL SINUS RHYTHM"] == "contained in SINUS RHYTHM"
    assert sum("needs a previous ECG" in note for note in notes.values()) == 22
    assert label_notes(Vocabulary.load("ptbxl_super5"))["MI"] == "myocardial infarction"


def rows_of(html):
    table = html.index('class="sortable"', html.index(">All labels</h2>"))
    body = html[html.index("<tbody>", table) :]
    rows = re.findall(r"<tr>(.*?)</tr>", body[: body.index("</tbody>")])
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_report_is_self_contained_and_shows_undefined_with_its_reason(predictions, tmp_path):
    path = write_report(tmp_path / "report.html", predictions, notes={"rare": "a <note>"})
    html = path.read_text()
    assert "//" not in html
    assert html.count("<svg") >= 5
    rows = rows_of(html)
    shown = [row[1].replace(",", "").replace("<small>&lt;10</small>", "3") for row in rows]
    patients = [int(count) for count in shown]
    assert patients == sorted(patients, reverse=True)
    by_label = {re.sub("<.*", "", row[0]): row for row in rows}
    assert by_label["absent"][5].startswith('\N{EN DASH}<sup title="no positives">')
    assert by_label["always"][6].startswith('\N{EN DASH}<sup title="no negatives">')
    assert by_label["unseen"][4] == ""
    assert "a &lt;note&gt;" in html
    table = pl.read_csv(tmp_path / "report.csv")
    np.testing.assert_allclose(table["auroc"], label_table(predictions)["auroc"], atol=5e-4)


def test_report_says_in_words_what_limits_it(predictions, tmp_path):
    text = write_report(tmp_path / "report.html", predictions).read_text()
    assert "400 records of 200 patients, split val, 6 labels" in text
    assert "3 labels have no AUROC" in text
    assert "1 label has fewer than 10 positive or negative patients" in text
    assert "18.8% of the answers were not observed" in text
    assert "0123456789abcdef" in text
    assert "No training log was given" in text
    assert predictions.record_key[0] not in text


def test_training_records_and_unknown_patients_are_pointed_out(tmp_path):
    foreign = Predictions.create(
        ["a"], ["r1", "r2", "r3"], [[0.0], [1.0], [2.0]], [[0], [1], [1]], split="train"
    )
    text = write_report(tmp_path / "report.html", foreign).read_text()
    assert "If the model was trained on this split" in text
    assert "Patients are unknown: intervals are clustered by record (3)" in text


def test_predictions_without_any_truth_still_give_a_report(tmp_path):
    bare = Predictions.create(["a", "b"], ["r1"], [[0.0, 1.0]])
    text = write_report(tmp_path / "report.html", bare).read_text()
    assert "nothing about the model" in text
    assert "no label has both positives and negatives" in text


def cohort(rng, num_patients, labels, prevalence, split="test", separation=1.5, **more):
    targets = (rng.random((2 * num_patients, len(labels))) < prevalence).astype(np.uint8)
    return Predictions.create(
        labels,
        [f"r{index}" for index in range(2 * num_patients)],
        rng.normal(size=targets.shape) + separation * targets,
        targets,
        patient_key=[f"p{index // 2}" for index in range(2 * num_patients)],
        split=split,
        **more,
    )


def test_only_weights_that_saw_the_records_are_said_to_remember_them(tmp_path):
    """`train` is also the name of a fold of PTB-XL, which the published weights never saw."""
    folds = cohort(np.random.default_rng(0), 60, ["a"], 0.3, split="train")
    path = tmp_path / "report.html"
    assert "memory" not in write_report(path, folds, seen_in_training=False).read_text()
    assert (
        "was trained on these records"
        in write_report(path, folds, seen_in_training=True).read_text()
    )
    unknown = write_report(path, folds).read_text()
    assert "was trained on these records" not in unknown
    assert "If the model was trained on this split" in unknown


@pytest.mark.parametrize("num_patients", [1, 6, 400])
def test_report_says_how_many_labels_are_calibrated_and_never_that_all_are(num_patients, tmp_path):
    rng = np.random.default_rng(3)
    labels = ["common", "rare"]
    validation = cohort(rng, num_patients, labels, [0.4, 0.005], split="val")
    decisions = Decisions.fit(validation, "", "")
    tested = cohort(rng, 100, labels, [0.4, 0.05])
    text = write_report(tmp_path / "report.html", tested, decisions=decisions).read_text()
    if num_patients < 10:
        assert "Calibrated: 0 of 2 labels" in text
        assert "thresholds (youden): 0 of 2" in text
        assert "No threshold, fewer than 10" in text or "No threshold, no positives" in text
    else:
        assert "Calibrated: 1 of 2 (1 isotonic) labels" in text
    assert f"of {num_patients:,} patients" in text
    assert "are calibrated with" not in text


def test_the_reason_of_a_missing_threshold_is_the_one_that_was_kept(tmp_path):
    rng = np.random.default_rng(4)
    backwards = cohort(rng, 200, ["a"], 0.3, split="val", separation=-3.0)
    decisions = Decisions.fit(backwards, "", "")
    tested = cohort(rng, 100, ["a"], 0.3)
    text = write_report(tmp_path / "report.html", tested, decisions=decisions).read_text()
    reason = decisions.thresholds["youden"].reasons[0]
    if reason is not None:
        assert f"No threshold, {reason}: 1 label (a)" in text
    constant = replace(backwards, logits=np.zeros_like(backwards.logits))
    decisions = Decisions.fit(constant, "", "")
    text = write_report(tmp_path / "report.html", tested, decisions=decisions).read_text()
    assert "No threshold, the scores do not separate the classes: 1 label (a)" in text


def test_the_mean_with_an_interval_leads_and_comparisons_are_apart(tmp_path):
    rng = np.random.default_rng(5)
    tested = cohort(rng, 300, ["common", "compared", "rare"], [0.3, 0.3, 0.008])
    text = write_report(
        tmp_path / "report.html", tested, notes={"compared": NEEDS_PREVIOUS_ECG}
    ).read_text()
    first = text[text.index('class="card"') :]
    assert "over the 1 label with at least 10" in first[: first.index("</div>")]
    assert "1 label states a comparison with a previous ECG" in text
    assert "With 95 % confidence for all labels together" in text


def test_participants_and_checklists_are_in_the_report_and_small_groups_are_not(tmp_path):
    rng = np.random.default_rng(6)
    tested = cohort(
        rng, 100, ["a"], 0.3, sex=["F"] * 6 + ["M"] * 194, age_years=rng.uniform(20, 90, 200)
    )
    text = write_report(
        tmp_path / "report.html", tested, flow={"records found": 1234, "rejected": 7}
    ).read_text()
    section = text[text.index(">Participants</h2>") : text.index(">Discrimination</h2>")]
    assert "1,234" in section
    assert ">7<" not in section
    assert "sex: M" in section
    assert ">194<" not in section, "six would follow from it"
    assert ">200<" in section
    for item in ("TRIPOD+AI", "CLAIM"):
        assert item in text
    assert "Label by label in each group" in text


def test_nan_logits_make_no_report(predictions, tmp_path):
    predictions.logits[3, 0] = np.nan
    with pytest.raises(UserError, match="'rare' are NaN"):
        write_report(tmp_path / "report.html", predictions)
    assert list(tmp_path.iterdir()) == []


def test_training_log_is_read_with_gaps_missing_columns_and_a_cut_line(tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text(
        "samples_seen,train/loss,lr,val/macro_auroc\n64,0.7,0.001,\n128,0.6,0.002,0.8\n192,0.5,\n25"
    )
    series, x_label = read_training_log(log)
    assert x_label == "samples seen"
    assert {name: (x.tolist(), y.tolist()) for name, (x, y) in series.items()} == {
        "train/loss": ([64, 128, 192], [0.7, 0.6, 0.5]),
        "lr": ([64, 128], [0.001, 0.002]),
        "val/macro_auroc": ([128], [0.8]),
    }
    log.write_text("train/loss\n0.7\n0.6\n")
    series, x_label = read_training_log(log)
    assert series["train/loss"][0].tolist() == [0, 1]
    assert x_label == "row of the log"
    log.write_text("")
    assert read_training_log(log) == ({}, "")
    assert read_training_log(tmp_path / "absent.csv") == ({}, "")


def test_training_curves_are_in_the_report(predictions, tmp_path):
    log = tmp_path / "metrics.csv"
    log.write_text("samples_seen,train/loss,val/loss\n64,0.7,\n128,0.6,0.65\n")
    text = write_report(tmp_path / "report.html", predictions, metrics_csv=log).read_text()
    assert "Training curves" in text
    assert "No training log" not in text


def test_page_of_strips_is_marked_local_only_on_every_sheet(tmp_path):
    signal = np.sin(np.linspace(0, 60, 5000))[None]
    strips = [Strip(signal, 500, ("I",), "key 1"), Strip(signal, 500, ("I",), "key 2")]
    text = write_strips_page(tmp_path / "strips.html", strips).read_text()
    assert text.count("Local only. Research use only") == 2
    assert "It must not leave this machine" in text
    assert text.count('class="true-scale"') == 2


def test_small_counts_are_on_no_page_and_in_no_table(tmp_path: Path) -> None:
    targets = np.zeros((200, 3), np.uint8)
    targets[:50, 0] = targets[:7, 1] = targets[4:, 2] = 1
    rng = np.random.default_rng(0)
    predictions = Predictions.create(
        ["common", "rare", "nearly_all"],
        [f"{number:032x}" for number in range(200)],
        rng.normal(size=(200, 3)),
        targets,
        patient_key=[f"{number:032x}" for number in range(200)],
        sex=["F"] * 7 + ["M"] * 193,
    )
    page = write_report(tmp_path / "report.html", predictions).read_text()
    table = {row["label"]: row for row in pl.read_csv(tmp_path / "report.csv").to_dicts()}
    assert table["common"]["num_positives"] == 50
    for label in ("rare", "nearly_all"):
        assert table[label]["num_positives"] is table[label]["prevalence"] is None
        assert len(repr(table[label]["auroc"])) <= 5, "three decimals"
    cells = re.findall(r"<tr><td[^>]*>(rare|nearly_all)<.*?</tr>", page)
    assert cells
    for row in re.findall(r"<tr><td[^>]*>rare<.*?</tr>", page):
        assert "&lt;10" in row
        assert ">7<" not in row
    for row in re.findall(r"<tr><td[^>]*>nearly_all<.*?</tr>", page):
        assert ">196<" not in row
    for row in re.findall(r"<tr><td[^>]*>sex: F<.*?</tr>", page):
        assert ">7<" not in row

"""Tables and reports: nothing undefined looks like a number, nothing leaves that must not."""

import re
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
from ecgfounder_train.evaluation.training_log import read_training_log
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.metrics.predictions import Predictions

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
    positives = [int(count) for count in shown]
    assert positives == sorted(positives, reverse=True)
    by_label = {re.sub("<.*", "", row[0]): row for row in rows}
    assert by_label["absent"][4] == "undefined<br><small>no positives</small>"
    assert by_label["always"][5] == "undefined<br><small>no negatives</small>"
    assert by_label["unseen"][3] == ""
    assert "a &lt;note&gt;" in html
    table = pl.read_csv(tmp_path / "report.csv")
    np.testing.assert_allclose(table["auroc"], label_table(predictions)["auroc"], atol=5e-4)


def test_report_says_in_words_what_limits_it(predictions, tmp_path):
    text = write_report(tmp_path / "report.html", predictions).read_text()
    assert "400 records of 200 patients, split val, 6 labels" in text
    assert "3 labels have no AUROC" in text
    assert "1 labels have fewer than 10 positives" in text
    assert "18.8% of the answers were not observed" in text
    assert "0123456789abcdef" in text
    assert "No training log was given" in text
    assert predictions.record_key[0] not in text


def test_training_records_and_unknown_patients_are_pointed_out(tmp_path):
    foreign = Predictions.create(
        ["a"], ["r1", "r2", "r3"], [[0.0], [1.0], [2.0]], [[0], [1], [1]], split="train"
    )
    text = write_report(tmp_path / "report.html", foreign).read_text()
    assert "remembers" in text
    assert "Patients are unknown: intervals are clustered by record (3)" in text


def test_predictions_without_any_truth_still_give_a_report(tmp_path):
    bare = Predictions.create(["a", "b"], ["r1"], [[0.0, 1.0]])
    text = write_report(tmp_path / "report.html", bare).read_text()
    assert "nothing about the model" in text
    assert ">undefined<" in text


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

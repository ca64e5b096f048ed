"""Bad input gives NaN with its reason or a clear error; comparisons are paired."""

from dataclasses import replace

import numpy as np
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation import write_report
from ecgfounder_train.evaluation.assessment import assess
from ecgfounder_train.evaluation.comparison import write_comparison
from ecgfounder_train.evaluation.mistakes import confident_mistakes
from ecgfounder_train.evaluation.pooling import pool_windows
from ecgfounder_train.metrics import auroc
from ecgfounder_train.metrics.estimates import NO_VARIANCE
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.shards.overlap import check_overlap
from ecgfounder_train.weights.decisions import Decisions, decisions_file, read_decisions

LABELS = ("CRBBB", "IRBBB", "SR")


@pytest.fixture
def predictions():
    rng = np.random.default_rng(4)
    targets = (rng.random((300, 3)) < [0.3, 0.2, 0.6]).astype(np.uint8)
    logits = rng.normal(size=(300, 3)) + 1.5 * targets
    return Predictions.create(
        LABELS,
        [f"r{index}" for index in range(300)],
        logits,
        targets,
        patient_key=[f"p{index // 2}" for index in range(300)],
        split="val",
        sex=["F", "M", None] * 100,
        age_years=rng.uniform(20, 90, 300),
        native_fs=[100.0, 500.0] * 150,
        run_name="one",
    )


def test_values_are_those_of_the_metrics_and_lie_in_their_intervals(predictions):
    table = assess(predictions).table
    np.testing.assert_allclose(
        table["auroc"], auroc(predictions.logits, predictions.targets), atol=1e-12
    )
    assert (table["auroc_lower"] < table["auroc"]).all()
    assert (table["auroc"] < table["auroc_upper"]).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"patient_key": np.full(300, "p", object)}, "fewer than 10 positive patients"),
        ({"logits": np.zeros((300, 3), np.float32)}, f"{NO_VARIANCE}: all scores are equal"),
        ({"targets": np.zeros((300, 3), np.uint8)}, "no positives"),
        ({"observed": np.zeros((300, 3), np.uint8)}, "never observed"),
    ],
)
def test_intervals_that_cannot_be_known_are_nan_with_the_reason(
    predictions, change, reason, tmp_path
):
    assessed = assess(replace(predictions, **change))
    assert assessed.table["interval_reason"].to_list() == [reason] * 3
    assert assessed.table["auroc_lower"].is_nan().all()
    html = write_report(tmp_path / "r.html", replace(predictions, **change)).read_text()
    assert reason in html
    assert ">nan<" not in html
    assert "nan\N{NO-BREAK SPACE}to" not in html


def test_subgroups_are_given_for_what_is_known_and_differs(predictions):
    groups = {(g.attribute, g.value) for g in assess(predictions).subgroups}
    assert {("sex", "F"), ("sex", "M"), ("sampling rate", "100 Hz")} <= groups
    assert not [name for name, _ in groups if name == "site"], "nobody knows the site"


def test_thresholds_survive_the_file_and_go_with_checkpoint_and_reading_only(predictions, tmp_path):
    fitted = Decisions.fit(predictions, "abc", "pool=mean")
    path = decisions_file(tmp_path / "best.ckpt")
    fitted.write(path)
    assert path.name == "best.calibration.json"
    again = read_decisions(path, "abc", "pool=mean")
    for name, rule in fitted.thresholds.items():
        np.testing.assert_array_equal(again.thresholds[name].values, rule.values)
    np.testing.assert_array_equal(
        again.calibration.apply(predictions.logits), fitted.calibration.apply(predictions.logits)
    )
    assert read_decisions(path, "trained further", "pool=mean") is None
    assert read_decisions(path, "abc", "pool=max") is None
    path.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_decisions(path, "abc", "pool=mean")
    with pytest.raises(UserError, match="LVH"):
        fitted.for_labels(["LVH"])


def test_confusions_count_the_share_of_each_label_called_another(predictions):
    assessed = assess(predictions, decisions=Decisions.fit(predictions, "", ""))
    (confusion,) = assessed.confusions
    assert confusion.labels == ("CRBBB", "IRBBB")
    assert confusion.rows[-1] == "none of these"
    cut = assessed.decisions.thresholds["youden"].values
    stated = predictions.targets[:, 0] == 1
    assert confusion.counts[0] == stated.sum()
    assert confusion.share[0, 1] == (predictions.logits[stated, 1] >= cut[1]).mean()


def test_confident_mistakes_contradict_the_answer_and_no_record_comes_twice(predictions):
    found = confident_mistakes(assess(predictions), limit=6)
    assert len(found) == 6
    assert len({item.row for item in found}) == 6
    for item in found:
        column = LABELS.index(item.label)
        assert predictions.targets[item.row, column] == item.missed
        lower = (predictions.logits[:, column] < predictions.logits[item.row, column]).mean()
        assert (lower < 0.3) if item.missed else (lower > 0.7)


def test_a_control_of_other_records_or_labels_is_refused(predictions):
    other = Predictions.create(LABELS, ["x"], [[0, 0, 0]], [[0, 0, 0]])
    with pytest.raises(UserError, match="computed for other records"):
        assess(predictions, controls={"probe": other})
    other = Predictions.create(("a",), ["x"], [[0]], [[0]])
    with pytest.raises(UserError, match="other labels"):
        assess(predictions, controls={"probe": other})


def test_a_control_without_an_output_is_undefined_there_not_zero(predictions):
    logits = predictions.logits.copy()
    logits[:, 1] = np.nan
    (control,) = assess(
        predictions, controls={"probe": replace(predictions, logits=logits)}
    ).controls
    assert np.isnan(control.ranking.auroc.value).tolist() == [False, True, False]


def test_comparison_finds_the_better_run_whatever_the_order_of_records(predictions, tmp_path):
    rng = np.random.default_rng(9)
    order = rng.permutation(300)
    worse = replace(
        predictions,
        **{
            name: getattr(predictions, name)[order]
            for name in ("record_key", "patient_key", "window", "split", "site", "sex",
                         "age_years", "native_fs", "targets", "observed")
        },
        logits=rng.normal(size=(300, 3)).astype(np.float32),
        run_name="two",
    )  # fmt: skip
    page = write_comparison(tmp_path / "c.html", {"one": predictions, "two": worse})
    assert "better on 0 labels and worse on 3" in page.read_text()
    flipped = replace(worse, targets=1 - worse.targets)
    with pytest.raises(UserError, match="other answers"):
        write_comparison(tmp_path / "d.html", {"one": predictions, "two": flipped})
    fewer = Predictions.create(LABELS, ["r1"], [[0, 0, 0]], [[0, 0, 0]])
    with pytest.raises(UserError, match="of which 1 are among"):
        write_comparison(tmp_path / "d.html", {"one": predictions, "two": fewer})
    with pytest.raises(UserError, match="no label in common"):
        write_comparison(
            tmp_path / "d.html", {"one": predictions, "two": replace(worse, labels=("a", "b", "c"))}
        )


def test_windows_become_one_row_whose_answer_is_the_mean_or_the_largest():
    windows = Predictions.create(
        ["a"], ["r1", "r2", "r1"], [[1.0], [5.0], [4.0]], [[1], [0], [1]], window=[0, 0, 1]
    )
    assert pool_windows(windows).logits.tolist() == [[2.5], [5.0]]
    assert pool_windows(windows, "max").logits.tolist() == [[4.0], [5.0]]
    assert pool_windows(windows, "max").record_key.tolist() == ["r1", "r2"]
    assert len(pool_windows(windows, "none")) == 3


def test_overlap_is_refused_and_what_cannot_be_compared_is_said(tiny_shards):
    row = int(tiny_shards.rows("train")[0])
    seen = tiny_shards.index["record_key"][row].decode()
    secret = tiny_shards.manifest.fingerprints["secret"]
    with pytest.raises(UserError, match="1 record of the evaluated set"):
        check_overlap([seen], [None], secret, tiny_shards, "test")
    assert "another source" in check_overlap([seen], [None], secret, tiny_shards, "ptbxl")
    assert "another secret" in check_overlap([seen], [None], "other", tiny_shards, "test")
    assert "not found" in check_overlap([seen], [None], secret, None)
    assert "No evaluated record" in check_overlap(["new"], ["new"], secret, tiny_shards, "test")

"""A trained run on its own shards and on foreign records, from the command line's config down."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf
from tiny_set import build, tiny_config

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.evaluation import Evaluation
from ecgfounder_train.evaluation.outcome import write_outcome
from ecgfounder_train.evaluation.pooling import pool_windows
from ecgfounder_train.evaluation.run import evaluate
from ecgfounder_train.evaluation.settings import EvaluationSettings
from ecgfounder_train.metrics.predictions import Predictions, read_predictions
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.weights.decisions import Decisions


@pytest.fixture(scope="module")
def runs(tiny_shards, tmp_path_factory):
    """Two tiny runs: of twelve leads, and of one."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny_config(tiny_shards, folder, "twelve", "budget.max_epochs=1"))
    train(tiny_config(tiny_shards, folder, "single", "budget.max_epochs=1",
                      "data.lead_choice=published"))  # fmt: skip
    return folder


def config_of(runs, *overrides):
    config = compose_config("evaluate", [f"paths.runs={runs}", "device=cpu", *overrides])
    return OmegaConf.to_container(config, resolve=True)


def opened(config, name):
    return Evaluation(EvaluationSettings.from_config(config), name)


MAP = "label,ours,unobserved_if,justification\nNORM,fine,,said so\nMI,bad&old,bad,both words\n"


@pytest.fixture(scope="module")
def foreign(tiny_set, tmp_path_factory):
    """The archive as a stranger's folder: a table of statements, and a map to the labels."""
    folder = tmp_path_factory.mktemp("foreign")
    rng = np.random.default_rng(2)
    with open(folder / "labels.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["record", "said", "who"])
        for number, path in enumerate(tiny_set.catalog["record_path"]):
            said = rng.choice(["fine", "bad;old", "bad", "other"])
            writer.writerow([path, said, number // 2 if number % 5 else ""])
    (folder / "map.csv").write_text(MAP)
    return [
        "source=wfdb_folder",
        f"source.root={tiny_set.root}",
        f"source.table={folder / 'labels.csv'}",
        "source.statement_columns=[said]",
        'source.statement_separator=";"',
        "source.patient_column=who",
        "external.name=mine",
        f"map={folder / 'map.csv'}",
    ]


def test_val_split_is_a_key_although_prepare_has_a_group_of_that_name(runs):
    assert config_of(runs, "run=twelve", "split=val")["split"] == "val"
    with pytest.raises(UserError, match="no split=vall"):
        compose_config("prepare", ["split=vall", "shards=x", "source.root=y"])


def test_own_shards_give_report_table_thresholds_and_page_of_mistakes(runs):
    page = evaluate(config_of(runs, "run=twelve", "split=val", "controls=true", "scratch=single"))
    folder = page.parent
    assert folder.name == "val"
    html = page.read_text()
    for heading in ("Controls", "Decisions", "Calibration", "Label by label", "Provenance"):
        assert f">{heading}</h2>" in html
    assert "No evaluated record or patient is in the training part" in html
    assert "from scratch" in html
    table = pl.read_csv(folder / "report.csv")
    assert {"auroc_lower", "sensitivity_upper", "auroc_untrained_+_probe"} <= set(table.columns)
    assert (folder.parents[1] / "checkpoints" / "best.calibration.json").is_file()
    stored = read_predictions(folder / "predictions.parquet")
    assert len(stored) > stored.num_records, "the file keeps windows; the report pools them"
    assert f"{stored.num_records:,} records by the mean" in html


def test_a_group_of_labels_is_reported_alone_with_the_numbers_of_the_whole(runs):
    evaluate(config_of(runs, "run=twelve", "split=val"))
    evaluation = opened(config_of(runs, "run=twelve", "split=val"), "twelve")
    whole = pl.read_csv(evaluation.folder / "report.csv")
    # The vocabulary has one group; another is made of two of its five labels.
    groups = evaluation.target.shards.manifest.vocabulary["groups"]
    groups[1:3] = ["form|rhythm", "rhythm"]
    parts = {"rhythm": whole[1:3], "not:rhythm": whole[[0, 3, 4]], "form": whole[1:2]}
    evaluated = evaluation.evaluate()
    for group, expected in parts.items():
        asked = replace(evaluation.settings, group=group)
        evaluation.settings = evaluation.target.settings = asked
        page = write_outcome(evaluation, evaluated)
        assert page.parent.name == f"val-{group.replace(':', '_')}"
        found = pl.read_csv(page.parent / "report.csv")
        assert found.drop("group").equals(expected.drop("group"))
    asked = replace(evaluation.settings, group="rythm")
    evaluation.settings = evaluation.target.settings = asked
    for act in (evaluation.evaluate, lambda: write_outcome(evaluation, evaluated)):
        with pytest.raises(UserError, match=r"group='rythm'.*form, rhythm, superclass"):
            act()


def test_shards_with_other_labels_are_refused_by_name(runs, tiny_shards, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_shards.folder, other)
    manifest = json.loads((other / "manifest.json").read_text())
    labels = manifest["vocabulary"]["labels"]
    manifest["vocabulary"] |= {"name": "turned", "labels": labels[::-1]}
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"have 5 \(turned\)\. Prepare shards with the model's"):
        evaluate(config_of(runs, "run=twelve", f"shards={other}"))


def test_thresholds_of_validation_are_applied_unchanged_and_go_with_their_checkpoint(runs):
    first = opened(config_of(runs, "run=twelve", "split=val"), "twelve")
    fitted = first.decisions(first.evaluate())
    on_test = opened(config_of(runs, "run=twelve"), "twelve")
    assert on_test.decisions(on_test.evaluate()).thresholds == fitted.thresholds
    with pytest.raises(UserError, match="validation records only, not on test"):
        Decisions.fit(on_test.evaluate().predictions, "", "")
    other = opened(config_of(runs, "run=single"), "single")
    assert other.decisions(other.evaluate()).checkpoint != fitted.checkpoint


def test_foreign_records_are_read_mapped_pooled_and_reported(runs, foreign):
    page = evaluate(config_of(runs, "run=twelve", "mistakes=2", *foreign))
    html = page.read_text()
    assert page.parent.name == "mine-map"
    assert "2 of the model&#x27;s 5 labels have an answer here" in html
    assert "Labels that are not evaluated" in html
    assert "not in the map" in html
    assert "clustered by patient where known" in html
    stored = read_predictions(page.parent / "predictions.parquet")
    assert stored.labels == ("NORM", "MI")
    assert set(stored.targets[stored.observed == 0]) == {0}
    assert None in stored.patient_key.tolist()


def test_window_pooling_by_max_scores_no_record_lower_than_mean(runs, foreign):
    mean, largest = (
        opened(config_of(runs, "run=twelve", f"pool={how}", *foreign), "twelve")
        .evaluate()
        .predictions
        for how in ("mean", "max")
    )
    assert (largest.logits >= mean.logits - 1e-6).all()
    assert (largest.logits > mean.logits + 1e-6).any()


def test_four_crops_are_the_mean_over_quarters(runs, tiny_shards):
    whole, crops = (
        opened(config_of(runs, "run=twelve", f"crops={n}"), "twelve").evaluate().predictions
        for n in (1, 4)
    )
    assert not np.allclose(whole.logits, crops.logits)
    with pytest.raises(UserError, match="crops=7 does not divide a window of 1000 samples"):
        opened(config_of(runs, "run=twelve", "crops=7"), "twelve").evaluate()


def test_twelve_leads_reduced_to_one_feed_the_single_lead_model_the_same(runs, foreign, tiny_set):
    plain = opened(config_of(runs, "run=single", *foreign), "single").subject.trained
    reduced = plain.of_lead_i()
    assert reduced.profile.leads == ("I",)
    config = config_of(runs, "run=single", *foreign)
    stored = opened(config, "single").evaluate().predictions
    entries = tiny_set.shards.index
    rows = tiny_set.shards.rows("test")
    direct = opened(config_of(runs, "run=single", "pool=none"), "single").evaluate()
    assert len(direct.predictions) == len(rows) and len(entries) >= len(rows)
    columns = [direct.predictions.labels.index(label) for label in stored.labels]
    for logits in pool_windows(direct.predictions, "mean").logits[:, columns]:
        assert np.abs(stored.logits - logits).max(axis=1).min() < 2e-3


def test_records_of_the_training_part_are_refused(runs, tiny_set, tmp_path):
    # One person on both sides, as a split by record would leave them.
    known = tiny_set.catalog.filter(pl.col("split") == "train")["patient_key"][0]
    is_test = pl.col("split") == "test"
    first_test = is_test & (is_test.cum_sum() == 1)
    leaking = tiny_set.catalog.with_columns(
        pl.when(first_test).then(pl.lit(known)).otherwise("patient_key").alias("patient_key")
    )
    shards = build(leaking, tiny_set.root, tmp_path / "leaking")
    with pytest.raises(UserError, match="training part also holds 1 patient of the evaluated set"):
        opened(config_of(runs, "run=twelve", f"shards={shards.folder}"), "twelve").evaluate()


def test_two_runs_are_compared_on_the_same_records_only(runs, foreign):
    page = evaluate(config_of(runs, "compare=[twelve,single]", "split=val"))
    assert page.name == "compare_single.html"
    assert "single differs from twelve" in page.read_text() or "share no label" in page.read_text()
    table = pl.read_csv(page.with_suffix(".csv"))
    assert "auroc_single_minus_twelve_p_holm" in table.columns
    with pytest.raises(UserError, match="two or more different runs"):
        evaluate(config_of(runs, "compare=[twelve,twelve]"))
    with pytest.raises(UserError, match="Name a run"):
        evaluate(config_of(runs))


def test_averaged_runs_have_the_mean_of_their_logits_and_thresholds_of_their_own(runs, foreign):
    alone = {
        name: opened(config_of(runs, f"run={name}", "split=val"), name).evaluate().predictions
        for name in ("twelve", "single")
    }
    mean = (alone["twelve"].logits.astype(float) + alone["single"].logits) / 2
    config = config_of(runs, "run=twelve", "average=[single]", "split=val")
    page = evaluate(config)
    assert page.parent.name == "val-mean_with_single"
    assert "Run twelve + single, val split" in page.read_text()
    averaged = opened(config, "twelve")
    evaluated = averaged.evaluate()
    np.testing.assert_allclose(evaluated.predictions.logits, mean, atol=1e-5)
    kept = sorted(
        path.name for path in averaged.subject.checkpoint.parent.glob("*.calibration.json")
    )
    assert "mean_with_single.best.calibration.json" in kept
    own = averaged.decisions(evaluated)
    on_test = opened(config_of(runs, "run=twelve", "average=[single]"), "twelve")
    assert on_test.decisions(on_test.evaluate()).thresholds == own.thresholds
    outside = opened(config_of(runs, "run=twelve", "average=[single]", *foreign), "twelve")
    found = outside.evaluate()
    assert (
        outside.target.label_map is not None and "networks' (twelve, single)" in found.remarks[-1]
    )
    for wrong, message in (
        (("run=twelve", "average=[twelve]"), "each run counts once"),
        (("run=twelve", "average=[absent]"), "absent"),
        (("compare=[twelve,single]", "average=[single]"), "not with compare="),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(config_of(runs, *wrong))


def test_settings_that_cannot_be_meant_are_explained(runs, foreign):
    with pytest.raises(UserError, match="needs its recordings"):
        opened(config_of(runs, "run=twelve", "external.name=ptbxl"), "twelve").evaluate()
    with pytest.raises(UserError, match="threshold='best' is unknown"):
        evaluate(config_of(runs, "run=twelve", "threshold=best"))
    with pytest.raises(UserError, match="pool='median' is unknown"):
        evaluate(config_of(runs, "run=twelve", "pool=median"))
    with pytest.raises(UserError, match="windows= is for external sets"):
        opened(config_of(runs, "run=twelve", "windows=centre"), "twelve")
    with pytest.raises(UserError, match="no records of split=test"):
        opened(config_of(runs, "run=twelve", "split=test", *foreign), "twelve").evaluate()


@pytest.mark.parametrize(
    "name", ["ptbxl", "ptbxl_crops", "code_test", "cinc2017", "cinc2021", "mimic", "ludb"]
)
def test_every_external_experiment_composes_and_asks_for_its_root(runs, name):
    with pytest.raises(UserError, match=r"source\.root="):
        config_of(runs, "run=twelve", f"experiment=eval_{name}")
    config = config_of(runs, "run=twelve", f"experiment=eval_{name}", "source.root=somewhere")
    assert config["external"]["name"]


def test_nothing_but_a_name_is_needed_to_predict_again_what_was_predicted(runs):
    one, other = (
        opened(config_of(runs, "run=twelve"), "twelve").evaluate().predictions for _ in range(2)
    )
    assert isinstance(one, Predictions)
    np.testing.assert_array_equal(one.logits, other.logits)

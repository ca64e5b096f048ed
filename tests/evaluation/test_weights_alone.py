"""Weights without their run (exports, official files) through scripts/evaluate.py."""

from pathlib import Path

import numpy as np
import pytest
import torch
import wfdb
from omegaconf import OmegaConf
from tiny_set import build, tiny_config

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.run import evaluate
from ecgfounder_train.export.session import export
from ecgfounder_train.metrics.predictions import read_predictions
from ecgfounder_train.models import create_model
from ecgfounder_train.records import STANDARD_LEADS
from ecgfounder_train.training.pretrain import train

STATEMENTS = ("{'NORM': 100.0, 'SR': 0.0}", "{'AFIB': 100.0}", "{'IMI': 80.0, 'SR': 0.0}")


def config_of(verb, *overrides):
    return OmegaConf.to_container(compose_config(verb, list(overrides)), resolve=True)


def evaluated(*overrides):
    """Return the page of scripts/evaluate.py, its text, and the predictions beside it."""
    path = evaluate(config_of("evaluate", "device=cpu", "mistakes=1", *overrides))
    return path, path.read_text(), read_predictions(path.with_name("predictions.parquet"))


@pytest.fixture(scope="module")
def trained(tiny_shards, tmp_path_factory):
    """A run that was evaluated, and its export with thresholds and calibration."""
    folder = tmp_path_factory.mktemp("weights_alone")
    assert train(tiny_config(tiny_shards, folder, "first", "budget.max_epochs=1")) == 0
    evaluate(config_of("evaluate", "run=first", f"paths.runs={folder}", "mistakes=0"))
    runs = (f"paths.runs={folder}", "run=first")
    export(config_of("export", *runs, "format=safetensors", f"out={folder / 'mine'}"))
    return folder


@pytest.fixture(scope="module")
def ptbxl(tmp_path_factory):
    """Thirty recordings in the layout of PTB-XL."""
    root = tmp_path_factory.mktemp("ptbxl")
    rng = np.random.default_rng(1)
    lines = ["ecg_id,patient_id,age,sex,height,weight,nurse,site,device,recording_date,report,"
             "scp_codes,strat_fold,filename_lr,filename_hr"]  # fmt: skip
    for number in range(1, 31):
        folder = root / "records500" / "00000"
        folder.mkdir(parents=True, exist_ok=True)
        time = np.arange(5000) / 500
        beats = np.sin(2 * np.pi * (1 + number % 3) * time)
        signal = beats[:, None] * rng.uniform(0.2, 1, 12) + rng.normal(0, 0.02, (5000, 12))
        wfdb.wrsamp(
            f"{number:05d}_hr", fs=500, units=["mV"] * 12, sig_name=list(STANDARD_LEADS),
            p_signal=signal, fmt=["16"] * 12, write_dir=str(folder),
        )  # fmt: skip
        lines.append(
            f"{number},{number}.0,50.0,{number % 2},,,,0.0,,2000-01-01 00:00:00,,"
            f'"{STATEMENTS[number % 3]}",{1 + number % 10},records100/00000/{number:05d}_lr,'
            f"records500/00000/{number:05d}_hr"
        )
    (root / "ptbxl_database.csv").write_text("\n".join(lines) + "\n")
    return root


def test_an_export_is_evaluated_like_its_run_with_the_thresholds_it_brings(
    trained, tiny_shards, tmp_path
):
    shards = (f"shards={tiny_shards.folder}", "split=test", f"out={tmp_path / 'there'}")
    path, html, found = evaluated(f"checkpoint={trained / 'mine'}", *shards)
    assert path == tmp_path / "there" / "test" / "report.html"
    own = read_predictions(trained / "first" / "evaluation" / "test" / "predictions.parquet")
    np.testing.assert_array_equal(found.logits, own.logits)
    assert found.record_key.tolist() == own.record_key.tolist()
    ours = (trained / "first" / "evaluation" / "test" / "report.csv").read_text()
    assert path.with_suffix(".csv").read_text() == ours  # thresholds and calibration included
    assert "Weights mine, test split" in html and "kept beside the weights" in html
    assert "Whether mine was trained on any of these records or patients could not be" in html


def test_decisions_for_another_reading_are_not_applied_and_that_is_said(
    trained, tiny_shards, tmp_path
):
    shards = (f"shards={tiny_shards.folder}", "split=test", f"out={tmp_path}", "pool=max")
    path, html, _ = evaluated(f"checkpoint={trained / 'mine'}", *shards)
    assert "was fitted for pool=mean" in html
    assert "threshold_logit" not in path.with_suffix(".csv").read_text()


def test_controls_that_need_a_run_are_left_out_with_a_sentence(trained, tiny_shards, tmp_path):
    shards = (f"shards={tiny_shards.folder}", "split=val", f"out={tmp_path}")
    path, html, _ = evaluated(f"checkpoint={trained / 'mine'}", *shards, "controls=true")
    assert "The controls were left out" in html
    assert "untrained" not in path.with_suffix(".csv").read_text()


def test_official_weights_are_evaluated_on_an_external_set(ptbxl, tmp_path, monkeypatch):
    torch.manual_seed(0)
    file = tmp_path / "12_lead_ECGFounder.pth"
    torch.save({"state_dict": create_model("net1d_1m").state_dict(), "epoch": 1}, file)
    monkeypatch.chdir(tmp_path)
    external = ("experiment=eval_ptbxl", f"source.root={ptbxl}", "source.rate=500")
    path, html, found = evaluated("checkpoint=12_lead_ECGFounder.pth", *external)
    assert path == Path("outputs/evaluations/12_lead_ECGFounder/ptbxl/report.html")
    assert len(found) == 30 and np.isfinite(found.logits).all()
    assert "of the model&#x27;s 150 labels have an answer here" in html
    assert "trained on the Harvard-Emory database" in html
    assert "none is kept beside these weights" in html
    column = found.labels.index("ATRIAL FIBRILLATION")
    assert found.targets[:, column].sum() == 10


def test_shards_with_other_labels_than_the_official_ones_are_refused(tiny_set, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "bare.pth"
    torch.save(create_model("net1d_1m").state_dict(), file)
    shards = build(tiny_set.catalog, tiny_set.root, tmp_path / "shards")
    with pytest.raises(UserError, match="labels"):
        evaluated(f"checkpoint={file}", f"shards={shards.folder}", f"out={tmp_path}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("checkpoint=nowhere.pth",), "no checkpoint nowhere.pth"),
        ((), "checkpoint=PATH"),
        (("checkpoint=last",), "run=NAME"),
    ],
)
def test_what_is_missing_is_named(given, message):
    with pytest.raises(UserError, match=message):
        evaluated(*given)


def test_weights_without_data_are_told_where_to_name_it(trained):
    with pytest.raises(UserError, match="name shards=DIR, or an external set"):
        evaluated(f"checkpoint={trained / 'mine'}")

"""A fine-tuned run is an ordinary run: it resumes, loads anywhere, and reports its test once."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import run_tools
import torch
from omegaconf import OmegaConf
from polars.testing import assert_frame_equal
from run_tools import assert_same_run, last_checkpoint, rows
from tuning_tools import Place, Tune, arguments_of, composed

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.run import evaluate
from ecgfounder_train.finetuning.label_efficiency import label_efficiency
from ecgfounder_train.finetuning.session import finetune
from ecgfounder_train.metrics import auroc
from ecgfounder_train.metrics.predictions import read_predictions
from ecgfounder_train.models import create_model
from ecgfounder_train.training.module import PretrainModule
from ecgfounder_train.weights.checkpoint import BEST
from ecgfounder_train.weights.trained_model import TrainedModel

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "finetune.py"
AMOUNT = (
    "task.kind=regression",
    "task.targets=[amount]",
    "task.unit=mg",
)
EVERYTHING_ON = (
    "mode=preview",
    "crops=2",
    "augmentation=shift_gain_mixup",
    "ema.half_life_samples=60",
    "data.batch_size_per_rank=4",
    "log_every_steps=3",
    "checkpoints.every_samples=32",
    "budget.validate_every_samples=70",
    "budget.max_epochs=5",
)


def result_of(run: RunDirectory) -> dict[str, Any]:
    return json.loads((run.evaluation("test") / "result.json").read_text())


def backbone(checkpoint: dict[str, Any]) -> dict[str, torch.Tensor]:
    state = checkpoint["model"]
    return {k: v for k, v in state.items() if not k.startswith(("dense.", "attention."))}


@pytest.fixture(scope="module")
def undisturbed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    runs = tmp_path_factory.mktemp("undisturbed")
    assert finetune(composed(arguments_of(place, runs, "run", *EVERYTHING_ON))) == 0
    return RunDirectory(runs / "run")


def test_run_stopped_in_mid_epoch_goes_on_bit_exactly(
    tuned: Tune, undisturbed: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish_step = PretrainModule.finish_step

    def disturbed(module: PretrainModule) -> None:
        finish_step(module)
        if module.state.optimizer_steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(PretrainModule, "finish_step", disturbed)
        run = tuned(*EVERYTHING_ON, exit_code=128 + signal.SIGTERM)
    assert last_checkpoint(run)["position"]["global_step"] == 7
    assert not (run.evaluation("test") / "result.json").exists()
    assert tuned(*EVERYTHING_ON) == run
    assert_same_run(run, undisturbed)
    one, other = result_of(run), result_of(undisturbed)
    assert {**one, "checkpoint_sha256": ""} == {**other, "checkpoint_sha256": ""}


def test_test_part_is_reported_once_and_says_what_was_done(
    tuned: Tune, undisturbed: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tuned("mode=linear_probe")
    folder = run.evaluation("test")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {"result.json", "report.html", "report.csv", "predictions.parquet"} <= {
        path.name for path in before
    }
    capsys.readouterr()
    tuned("mode=linear_probe")
    assert "(reported before)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    page = (folder / "report.html").read_text()
    assert "mode linear_probe, from" in page and "rows = " in page
    for name in (BEST, "best.calibration.json"):
        assert (run.checkpoints / name).is_file()


@pytest.mark.parametrize("more", [(), AMOUNT])
def test_a_probes_report_from_kept_features_is_that_of_the_network(
    tuned: Tune, more: tuple[str, ...]
) -> None:
    settings = ("mode=linear_probe", "crops=2", *more)
    run = tuned(*settings)
    kept = pl.read_parquet(run.evaluation("test") / "predictions.parquet")
    shutil.rmtree(run.path / "evaluation")
    tuned(*settings)  # complete: nothing is fitted, and the network itself is asked
    asked = pl.read_parquet(run.evaluation("test") / "predictions.parquet")
    assert_frame_equal(kept, asked, abs_tol=1e-4)
    assert not kept.is_empty()


def test_reported_numbers_are_those_of_the_predictions_of_the_test_rows(
    tiny_set: Any, undisturbed: RunDirectory
) -> None:
    result = result_of(undisturbed)
    predictions = read_predictions(undisturbed.evaluation("test") / "predictions.parquet")
    value = auroc(predictions.logits, predictions.targets, predictions.observed)[0]
    assert result["outputs"][0]["auroc"][0] == pytest.approx(float(value), abs=1e-12)
    assert result["num_test_records"] == len(predictions) == 24
    assert set(predictions.split.tolist()) == {"test"}


def test_checkpoint_is_read_like_any_other_and_names_its_outputs(tuned: Tune, place: Place) -> None:
    run = tuned("mode=linear_probe", *AMOUNT)
    trained = TrainedModel.load(run.checkpoints / BEST)
    [output] = trained.outputs
    assert (output.name, output.kind, output.unit) == ("amount", "regression", "mg")
    table = pl.read_csv(place.table).filter(pl.col("part") == "train").drop_nulls("amount")
    # Windows, not records: a record of two windows counts twice in training.
    low, high = table["amount"].min(), table["amount"].max()
    assert low < output.mean < high and output.std > 0  # type: ignore[operator]
    assert trained.profile.fs == 100
    assert trained.provenance["finetuned_from"] == sha256_file(place.checkpoint)


def test_evaluate_refuses_a_fine_tuned_runs_shards_and_names_its_report(tuned: Tune) -> None:
    run = tuned("mode=linear_probe")
    asked = ["run=run", f"paths.runs={run.path.parent}", "device=cpu"]
    config = OmegaConf.to_container(compose_config("evaluate", asked), resolve=True)
    assert isinstance(config, dict)
    with pytest.raises(UserError, match="fine-tuned on the task 'table'") as refused:
        evaluate(config)
    assert str(run.evaluation("test") / "report.html") in str(refused.value)


def test_quantities_are_reported_in_their_unit(tuned: Tune) -> None:
    run = tuned(*AMOUNT, "mode=preview")
    [output] = result_of(run)["outputs"]
    frame = pl.read_parquet(run.evaluation("test") / "predictions.parquet")
    measured, predicted = frame["amount measured"], frame["amount predicted"]
    known = measured.is_not_null()
    error = (predicted - measured).abs().filter(known).mean()
    assert output["mae"][0] == pytest.approx(error, rel=1e-6)
    assert output["num_records"] == known.sum() == frame.height
    assert 5 < predicted.mean() < 35  # type: ignore[operator]
    logged = rows(run)
    assert {"val/r2", "val/mae"} < set(logged[0]) and "val/macro_auroc" not in logged[0]


def test_logarithm_is_learnt_and_named(tuned: Tune) -> None:
    run = tuned(*AMOUNT, "task.transform=log", "mode=linear_probe")
    [output] = TrainedModel.load(run.checkpoints / BEST).outputs
    assert (output.name, output.unit) == ("ln amount", "ln mg")
    assert np.log(10) < output.mean < np.log(30)


def test_frozen_network_stays_as_it_was_to_the_last_bit(tuned: Tune, place: Place) -> None:
    started = backbone(torch.load(place.checkpoint, weights_only=True))
    for mode in ("linear_probe", "attention_probe"):
        run = tuned(f"mode={mode}", "optimizer.lr=1e-2", run=mode)
        ended = backbone(last_checkpoint(run))
        run_tools.assert_identical(started, ended, mode)
    attention = last_checkpoint(RunDirectory(run.path.with_name("attention_probe")))
    assert attention["model"]["attention.score.weight"].any()
    assert TrainedModel.load(run.checkpoints / BEST).model_config["pooling"] == "attention"
    changed = backbone(last_checkpoint(tuned("mode=full", run="full")))
    assert not torch.equal(changed["first_conv.conv.weight"], started["first_conv.conv.weight"])


@pytest.mark.slow
def test_preview_and_attention_begin_where_the_linear_probe_ends(tuned: Tune) -> None:
    probe = result_of(tuned("mode=linear_probe", run="probe"))
    standstill = ("optimizer.lr=1e-12", "drop_path=0.0", "budget.max_samples=16")
    for mode in ("preview", "attention_probe"):
        begun = tuned(f"mode={mode}", *standstill, run=mode)
        if mode == "preview":
            # Training moves BatchNorm's statistics even without a rate.
            one, other = (
                torch.load(run.checkpoints / BEST, weights_only=True)["model"]["dense.weight"]
                for run in (begun, RunDirectory(begun.path.with_name("probe")))
            )
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
        else:
            assert result_of(begun)["score"]["value"] == pytest.approx(
                probe["score"]["value"], abs=0.01
            )


@pytest.mark.slow
def test_fresh_weights_are_the_controls_and_depend_on_the_seed(tuned: Tune) -> None:
    states = {}
    for name, more in {"a": (), "b": (), "c": ("seed=1",)}.items():
        run = tuned("mode=linear_probe", "init=random", *more, run=name)
        states[name] = backbone(last_checkpoint(run))["first_conv.conv.weight"]
    assert torch.equal(states["a"], states["b"]) and not torch.equal(states["a"], states["c"])


def test_controls_stand_beside_the_run_in_its_report(tuned: Tune) -> None:
    tuned("mode=linear_probe", "init=random", run="untrained")
    run = tuned("mode=linear_probe", "controls=[untrained]", run="probe")
    assert "auroc_untrained" in (run.evaluation("test") / "report.csv").read_text()


@pytest.mark.slow
def test_official_weights_are_a_starting_point(tuned: Tune, tmp_path: Path) -> None:
    torch.manual_seed(1)
    for leads in (12, 1):
        path = tmp_path / f"official_{leads}.pth"
        torch.save({"state_dict": create_model("net1d_1m", num_leads=leads).state_dict()}, path)
        run = tuned(
            f"checkpoint={path}", "mode=linear_probe", "label_fraction=0.5", run=f"leads_{leads}"
        )
        trained = TrainedModel.load(run.checkpoints / BEST)
        assert trained.profile.name == "official" and len(trained.profile.leads) == leads
        assert "MIT" in trained.licence and trained.provenance["derived_from_official"]


def test_fresh_weights_without_any_checkpoint(tuned: Tune) -> None:
    run = tuned(
        "checkpoint=none", "model=net1d_1m", "signal=zscore", "signal.fs=100", "mode=linear_probe"
    )
    assert TrainedModel.load(run.checkpoints / BEST).profile.fs == 100


def test_prepared_shards_serve_without_a_table(tuned: Tune, tiny_set: Any) -> None:
    label = tiny_set.shards.manifest.labels[4]
    run = tuned(
        f"shards={tiny_set.shards.folder}",
        "task.table=null",
        "task.split_column=null",
        f"task.targets=[{label}]",
        "mode=linear_probe",
    )
    assert result_of(run)["outputs"][0]["name"] == label


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("mode=lineal",), "mode='lineal' is unknown"),
        (("init=scratch",), "init='scratch' is unknown"),
        (("model=net1d_1m",), "model= and signal= are for checkpoint=none"),
        (("checkpoint=none",), "needs model=NAME"),
        (("checkpoint=none", "model=net1d_1m"), "needs signal=NAME"),
        (("checkpoint=best",), "checkpoint=best is that of a run"),
        (("crops=3",), "does not divide a window of 1000"),
        (("checkpoint=missing.ckpt",), "There is no checkpoint missing.ckpt"),
        (("mode=linear_probe", "trainer=ddp_cpu"), "solved in one process"),
        (("layer_decay=2.0",), "layer_decay=2.0"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_written(
    tuned: Tune, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        tuned(*more)
    assert not (tmp_path / "run").exists()


def test_another_task_or_start_under_the_same_name_is_refused(tuned: Tune) -> None:
    tuned("mode=linear_probe")
    for more in ("task.targets=[slow]", "label_fraction=0.5", "seed=3", "init=random"):
        with pytest.raises(UserError, match="is incompatible with these settings: another"):
            tuned("mode=linear_probe", more)


def test_nothing_of_a_run_holds_a_path_or_a_patient(
    undisturbed: RunDirectory, place: Place
) -> None:
    private = {"config.yaml", "starts.jsonl"}  # keep the command, for this machine
    words = [str(place.records).encode(), str(place.table).encode(), b"4711", b"answers.csv"]
    files = [p for p in undisturbed.path.rglob("*") if p.is_file() and p.name not in private]
    assert len(files) > 6
    for path in files:
        content = path.read_bytes()
        assert not [word for word in words if word in content], path.name


@pytest.mark.slow
def test_label_efficiency_completes_its_members_once_and_shows_them(
    place: Place, tmp_path: Path
) -> None:
    more = ("label_fractions=[0.3,1.0]", "seeds=[0]", "inits=[pretrained,untrained,scratch]")
    words = arguments_of(
        place, tmp_path, "curve", *more, "mode=linear_probe", "budget.max_samples=16"
    )
    assert label_efficiency(composed(words)) == 0
    table = pl.read_csv(tmp_path / "curve" / "label_efficiency.csv")
    assert table.height == 6 and table["value"].null_count() == 0
    by_share = table.group_by("label_fraction").agg(pl.col("num_train_patients").unique())
    assert by_share["num_train_patients"].list.len().to_list() == [1, 1]
    for name in ("label_efficiency.html", "label_efficiency.png"):
        assert (tmp_path / "curve" / name).stat().st_size > 1000
    members = {p: p.stat().st_mtime_ns for p in tmp_path.glob("curve-*/checkpoints/best.ckpt")}
    assert len(members) == 6
    assert label_efficiency(composed(words)) == 0
    assert {p: p.stat().st_mtime_ns for p in members} == members
    for wrong, message in (("inits=[random]", "inits: 'random'"), ("seeds=[]", "seeds is empty")):
        with pytest.raises(UserError, match=message):
            label_efficiency(composed(arguments_of(place, tmp_path, "curve", *more, wrong)))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_ranks_fine_tune_as_one_does(place: Place, tmp_path: Path) -> None:
    # Without BatchNorm's statistics, dropped paths and mixup, which see a rank's part of a batch.
    plain = ("mode=preview", "crops=2", "drop_path=0.0", "data.batch_size_per_rank=4", *AMOUNT)
    checkpoint = tmp_path / "plain.pth"
    torch.manual_seed(2)
    torch.save({"state_dict": create_model("net1d_1m").state_dict()}, checkpoint)
    results = []
    for name, trainer in (("one", "trainer=cpu"), ("two", "trainer=ddp_cpu")):
        words = arguments_of(place, tmp_path, name, *plain, trainer, f"checkpoint={checkpoint}")
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *words, "budget.max_samples=48"],
            capture_output=True, text=True, check=False, timeout=run_tools.TIMEOUT_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append(rows(RunDirectory(tmp_path / name)))
    assert len(results[0]) == len(results[1]) >= 4
    for a, b in zip(*results, strict=True):
        for name in a:
            assert bool(a[name]) == bool(b[name]), name
            if a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-3), name


def test_features_are_computed_once_whatever_share_or_task_uses_them(
    tuned: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = f"cache={tmp_path / 'cache'}"
    tuned("mode=linear_probe", cache, "label_fraction=0.3", run="part")
    [kept] = (tmp_path / "cache").glob("embeddings-*.npy")
    before = np.load(kept)
    tuned("mode=linear_probe", cache, run="whole")
    after = np.load(kept)
    known = ~np.isnan(before[:, 0, 0])
    assert np.array_equal(after[known], before[known])
    assert known.sum() < (~np.isnan(after[:, 0, 0])).sum()
    capsys.readouterr()
    tuned("mode=linear_probe", cache, "task.targets=[slow]", run="other")
    assert "embedding" not in capsys.readouterr().err

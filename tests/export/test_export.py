"""What is exported is the checkpoint over again, says what it is, and gives nobody away."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_set as tiny
import torch
import yaml
from export_tools import exported, of_file
from official_net1d import Net1D as OfficialNet1D

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.assessment import assess
from ecgfounder_train.export.card import LICENCE_DISCREPANCY, Evaluated, write_card
from ecgfounder_train.export.hub import from_pretrained
from ecgfounder_train.inference import load_model
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.models import create_model
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.bundle import DESCRIPTION_FILE, WEIGHTS_FILE
from ecgfounder_train.weights.checkpoint import find_checkpoint
from ecgfounder_train.weights.trained_model import OFFICIAL_LICENCE, TrainedModel


def as_official(trained: TrainedModel) -> OfficialNet1D:
    """The official class with this network's numbers."""
    config = trained.model.config  # type: ignore[union-attr]
    return OfficialNet1D(
        in_channels=config.num_leads,  # type: ignore[union-attr]
        base_filters=config.base_filters,  # type: ignore[union-attr]
        ratio=1,
        filter_list=list(config.widths),  # type: ignore[union-attr]
        m_blocks_list=list(config.depths),  # type: ignore[union-attr]
        kernel_size=16,
        stride=2,
        groups_width=16,
        n_classes=config.num_labels,  # type: ignore[union-attr]
    ).eval()


@pytest.mark.parametrize("kind", ["safetensors", "hub"])
def test_an_export_gives_the_same_logits_bit_for_bit(
    run: RunDirectory, tmp_path: Path, kind: str
) -> None:
    before = TrainedModel.load(find_checkpoint(run, "best"))
    folder = exported(run, tmp_path / "out", f"format={kind}").folder
    after = from_pretrained(folder).trained
    x = torch.randn(5, 12, 1000)
    assert torch.equal(before.model(x), after.model(x))
    assert after.labels == before.labels and after.profile == before.profile
    assert before.decisions is not None and after.decisions is not None
    assert after.decisions.to_dict() == before.decisions.to_dict()
    again = exported(run, tmp_path / "again", f"format={kind}").folder
    for path in sorted(folder.iterdir()):
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name


def test_the_official_class_loads_what_we_export(official_file: Path, tmp_path: Path) -> None:
    folder = of_file(official_file, tmp_path / "out", "format=official").folder
    content = torch.load(folder / "model.pth", weights_only=True)
    assert set(content) >= {"epoch", "step", "state_dict", "optimizer", "scheduler", "val_auroc"}
    trained = TrainedModel.load(official_file)
    theirs = as_official(trained)
    theirs.load_state_dict(content["state_dict"], strict=True)
    for length in (5000, 997):
        x = torch.randn(2, 12, length)
        with torch.inference_mode():
            torch.testing.assert_close(theirs(x), trained.model(x), atol=1e-5, rtol=1e-5)
    assert (folder / "tasks.txt").read_text().splitlines() == list(trained.labels)


def test_official_to_ours_to_official_is_bit_equal(official_file: Path, tmp_path: Path) -> None:
    first = torch.load(official_file, weights_only=False)
    of_file(official_file, tmp_path / "bundle", "format=safetensors")
    of_file(tmp_path / "bundle", tmp_path / "back", "format=official")
    last = torch.load(tmp_path / "back" / "model.pth", weights_only=True)
    assert list(last["state_dict"]) == list(first["state_dict"])
    for key, value in first["state_dict"].items():
        assert last["state_dict"][key].dtype == value.dtype
        assert torch.equal(last["state_dict"][key], value), key
    for key in ("epoch", "step", "val_auroc"):
        assert last[key] == first[key]
    again = TrainedModel.load(tmp_path / "back" / "model.pth")
    assert again.labels == TrainedModel.load(official_file).labels


def test_a_run_of_official_shape_goes_out_and_comes_back_with_its_labels(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    from ecgfounder_train.training.pretrain import train

    more = ("+model.stage_strides=[2,2]", "budget.max_epochs=1")
    assert train(tiny.tiny_config(tiny_shards, tmp_path, "two", *more)) == 0
    run = RunDirectory(tmp_path / "two")
    exported(run, tmp_path / "out", "format=official")
    before = TrainedModel.load(find_checkpoint(run, "best"))
    after = TrainedModel.load(tmp_path / "out" / "model.pth")
    assert after.labels == before.labels and after.profile == before.profile
    x = torch.randn(3, 12, 1000)
    assert torch.equal(before.model(x), after.model(x))
    theirs = as_official(before)
    content = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    theirs.load_state_dict(content["state_dict"], strict=True)
    torch.testing.assert_close(theirs(x), before.model(x), atol=1e-5, rtol=1e-5)


def test_what_the_official_class_would_misread_is_refused(
    run: RunDirectory, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"stage_strides=\[4, 4\] \(official: 2"):
        exported(run, tmp_path / "out", "format=official")
    content = torch.load(find_checkpoint(run, "best"), weights_only=True)
    config = content["spec"]["model"] | {"norm": "batch", "stage_strides": [2, 2]}
    path = tmp_path / "batch.ckpt"
    torch.save(content | {"spec": content["spec"] | {"model": config}}, path)
    with pytest.raises(UserError, match=r"model\.norm=batch \(official: none\)"):
        of_file(path, tmp_path / "out", "format=official")
    assert not (tmp_path / "out").exists()


def test_nothing_exported_names_patients_dates_or_this_machine(
    run: RunDirectory, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    words = ["47110", "20190317", str(tmp_path), str(run.path.parent), str(tiny.REPOSITORY),
             str(tiny_shards.folder), str(Path.home()), "/tmp"]  # fmt: skip
    keys = tiny_shards.index["patient_key"].astype(str).tolist()[:5]
    for kind in ("safetensors", "hub", "onnx"):
        folder = exported(run, tmp_path / kind, f"format={kind}").folder
        for path in folder.iterdir():
            content = path.read_bytes()
            for word in (*words, *keys):
                assert word.encode() not in content, (path.name, word)
            if path.suffix in (".md", ".json"):
                assert not re.search(rb"\b(19|20)\d\d-\d\d-\d\d\b", content), path.name


def test_a_path_in_a_checkpoint_is_not_published(run: RunDirectory, tmp_path: Path) -> None:
    content = torch.load(find_checkpoint(run, "best"), weights_only=True)
    spec = content["spec"] | {"provenance": {"table": str(tmp_path / "patients.csv")}}
    torch.save(content | {"spec": spec}, tmp_path / "leaky.ckpt")
    with pytest.raises(UserError, match=r"path of this machine in provenance\.table"):
        of_file(tmp_path / "leaky.ckpt", tmp_path / "out", "format=safetensors")


def card(folder: Path) -> tuple[dict[str, object], str]:
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(header)
    assert isinstance(fields, dict)
    return fields, text


def test_the_card_has_the_metrics_of_these_very_weights(run: RunDirectory, tmp_path: Path) -> None:
    import polars as pl

    done = exported(run, tmp_path / "best", "format=safetensors", "licence=MIT")
    fields, text = card(done.folder)
    assert fields["license"] == "mit"
    table = pl.read_csv(run.evaluation("test") / "report.csv")
    for number, row in enumerate(table.to_dicts()):
        interval = f"({row['auroc_lower']:.3f}-{row['auroc_upper']:.3f})"
        if row["interval_reason"]:
            interval = "(fewer than 10 positives: no interval)"
            assert row["num_positives"] is None or row["num_positives"] >= 10
        assert f"| {number} | {row['label']} | binary | {row['auroc']:.3f} {interval} |" in text
    assert "95 % intervals are by patient" in text
    for heading in ("Intended use", "Limits", "Biases", "Licence", "Training data"):
        assert f"## {heading}" in text
    assert "Not a medical device" in text
    assert "Training data: test, 100 records (63 windows in the training part)" in text
    assert LICENCE_DISCREPANCY not in text
    path = find_checkpoint(run, "best")
    other = path.with_name("other.ckpt")
    torch.save(torch.load(path, weights_only=True) | {"best": {"value": None}}, other)
    done = exported(run, tmp_path / "other", "format=safetensors", f"checkpoint={other}")
    other.unlink()
    text = card(done.folder)[1]
    assert "not evaluated before they were exported" in text and "other weights" in text
    assert any("no metrics" in note for note in done.notes)


def test_the_card_gives_means_with_intervals_and_differences_between_groups(
    official_file: Path,
) -> None:
    trained = TrainedModel.load(official_file)
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (400, 3)).astype(np.uint8)
    logits = (targets + rng.normal(0, 1, targets.shape)).astype(np.float32)
    sexes = ["F", "M"] * 200
    logits[1::2] = rng.normal(0, 1, (200, 3))  # for men it only guesses
    predictions = Predictions.create(
        trained.labels[:3], [f"{number:032x}" for number in range(400)], logits, targets, sex=sexes
    )
    text = write_card(trained, "x", {}, [], [Evaluated("val", assess(predictions))])
    assert re.search(r"\| AUROC \| 0\.6\d\d \| 0\.[56]\d\d to 0\.[67]\d\d \| 3 \|", text)
    areas = {sex: re.search(rf"\| val \| sex {sex} \| 200 \| (0\.\d+) ", text) for sex in "FM"}
    female, male = (float(found[1]) for found in areas.values() if found)
    assert female > 0.7 and abs(male - 0.5) < 0.1
    assert re.search(rf"\| 0 \| {trained.labels[0]} \| binary \| 0\.\d+ \(0\.\d+-0\.\d+\) \|", text)
    assert f"| 3 | {trained.labels[3]} | binary | not evaluated |" in text


def test_what_comes_from_ecgfounder_states_the_licence_discrepancy(
    official_file: Path, run: RunDirectory, tmp_path: Path
) -> None:
    of_file(official_file, tmp_path / "one", "format=hub")
    fields, text = card(tmp_path / "one")
    assert LICENCE_DISCREPANCY in text and "CC BY 4.0" in text and OFFICIAL_LICENCE in text
    assert fields["license"] == "other" and "unit variance" in text and "median" in text
    content = torch.load(find_checkpoint(run, "best"), weights_only=True)
    spec = content["spec"] | {"provenance": {"derived_from_official": True}}
    torch.save(content | {"spec": spec}, tmp_path / "tuned.ckpt")
    of_file(tmp_path / "tuned.ckpt", tmp_path / "two", "format=safetensors", "licence=MIT")
    fields, text = card(tmp_path / "two")
    assert LICENCE_DISCREPANCY in text and "fine-tuned" in text and fields["license"] == "other"
    of_file(tmp_path / "two", tmp_path / "three", "format=hub")
    assert LICENCE_DISCREPANCY in card(tmp_path / "three")[1]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_is_measured_and_said(
    run: RunDirectory, tmp_path: Path, precision: str
) -> None:
    done = exported(run, tmp_path / "out", "format=safetensors", f"precision={precision}")
    sentence = next(note for note in done.notes if note.startswith(f"Stored as {precision}"))
    assert sentence in (done.folder / "README.md").read_text()
    assert "validation part" in sentence and "AUROC of any label" in sentence
    effect = json.loads((done.folder / DESCRIPTION_FILE).read_text())["provenance"][
        "stored_precision"
    ]
    before = TrainedModel.load(find_checkpoint(run, "best"))
    after = TrainedModel.load(done.folder)
    weight = before.model.dense.weight  # type: ignore[union-attr]
    stored = weight.to(getattr(torch, precision)).float()  # type: ignore[operator]
    assert torch.equal(after.model.dense.weight, stored)  # type: ignore[union-attr, arg-type]
    assert 0 < effect["max_logit_change"] < 0.1 and effect["max_auroc_change"] < 0.1


def test_half_precision_without_data_is_measured_on_synthetic_signals(
    official_file: Path, tmp_path: Path
) -> None:
    done = of_file(official_file, tmp_path / "out", "format=official", "precision=float16")
    assert "synthetic signals" in done.notes[0] and "AUROC" not in done.notes[0]
    content = torch.load(done.folder / "model.pth", weights_only=True)
    assert content["state_dict"]["dense.weight"].dtype == torch.float16
    theirs = as_official(TrainedModel.load(done.folder / "model.pth"))
    theirs.load_state_dict(content["state_dict"], strict=True)


def test_wrong_settings_are_named(run: RunDirectory, official_file: Path, tmp_path: Path) -> None:
    for overrides, message in (
        (["format=onxx"], "format='onxx' is unknown. Did you mean 'onnx'"),
        (["precision=fp16"], "precision='fp16' is unknown"),
        ([f"out={tmp_path}/x.onnx"], "is the name of a file"),
        (["format=onnx", "onnx.statistics=outside"], "onnx.statistics='outside'"),
        (["checkpoint=absent.pth"], "neither best, last nor a file"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            exported(run, tmp_path / "out", *overrides)
    exported(run, tmp_path / "full")
    with pytest.raises(UserError, match="is not empty"):
        exported(run, tmp_path / "full")
    exported(run, tmp_path / "full", "overwrite=true")


def test_a_repository_is_read_from_the_hubs_cache_without_a_network(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = exported(run, tmp_path / "out", "format=hub").folder
    commit = "0" * 40
    entry = tmp_path / "cache" / "models--someone--ecg"
    snapshot = entry / "snapshots" / commit
    shutil.copytree(folder, snapshot)
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    found = from_pretrained("someone/ecg", cache=tmp_path / "cache", local_files_only=True)
    before = TrainedModel.load(find_checkpoint(run, "best"))
    x = torch.randn(2, 12, 500)
    assert torch.equal(found.trained.model(x), before.model(x))
    with pytest.raises(UserError, match="someone/else is not a folder"):
        from_pretrained("someone/else", cache=tmp_path / "cache", local_files_only=True)
    with pytest.raises(UserError, match="neither a folder here nor the name"):
        from_pretrained("not a name at all", local_files_only=True)
    assert (folder / ".gitattributes").read_text().startswith("*.safetensors filter=lfs")
    (snapshot / WEIGHTS_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match="damaged or no safetensors file"):
        from_pretrained("someone/ecg", cache=tmp_path / "cache", local_files_only=True)


@pytest.mark.parametrize("num_leads", [12, 1])
@pytest.mark.real_data
def test_official_weights_read_a_folder_of_real_records(
    real_data: Path, tmp_path: Path, num_leads: int
) -> None:
    torch.manual_seed(0)
    state = create_model("net1d_1m", num_leads=num_leads).state_dict()
    torch.save({"state_dict": state, "val_auroc": np.float64(0.9)}, tmp_path / "x.pth")
    paths = sorted(real_data.glob("ptbxl500/records500/**/*.hea"))[:3]
    assert paths
    found = load_model(tmp_path / "x.pth").predict([path.with_suffix("") for path in paths])
    assert len(found.records) == len(paths) and not found.rejected
    assert np.isfinite(found.logits).all() and found.logits.shape == (len(paths), 150)

"""Weights of every kind load as what they are, with all that their input and output mean."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_set as tiny
import torch
import yaml

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.labels import label_names
from ecgfounder_train.models import create_model
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.weights.bundle import DESCRIPTION_FILE, WEIGHTS_FILE, write_bundle
from ecgfounder_train.weights.checkpoint import find_checkpoint
from ecgfounder_train.weights.decisions import Decisions, decisions_file, reading_of
from ecgfounder_train.weights.trained_model import OFFICIAL_LICENCE, OFFICIAL_SIGNAL, TrainedModel

CPU = torch.device("cpu")
READING = reading_of("mean", 1, "isotonic")


@pytest.fixture(scope="module")
def checkpoint(tiny_shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's checkpoint with thresholds and calibration beside it."""
    runs = tmp_path_factory.mktemp("runs")
    assert train(tiny.tiny_config(tiny_shards, runs, "run", "optimizer.lr=1e-2")) == 0
    path = find_checkpoint(RunDirectory(runs / "run"), "best")
    predictions = predict_split(TrainedModel.load(path), tiny_shards, "val", CPU, 16)
    Decisions.fit(predictions, sha256_file(path), READING).write(decisions_file(path))
    return path


def official(tmp_path: Path, num_leads: int, **changes: Any) -> Path:
    torch.manual_seed(num_leads)
    model = create_model("net1d_1m", num_leads=num_leads)
    content = {"epoch": 1, "step": 10, "state_dict": model.state_dict(), "optimizer": {},
               "scheduler": {}, "val_auroc": np.float64(0.9)}  # fmt: skip
    path = tmp_path / f"{num_leads}_lead.pth"
    torch.save(content | changes, path)
    return path


def test_a_run_checkpoint_brings_its_decisions(checkpoint: Path) -> None:
    trained = TrainedModel.load(checkpoint)
    assert trained.decisions is not None and trained.decisions.suits("mean")
    assert not trained.decisions.suits("max") and not trained.decisions.suits("mean", crops=4)
    assert [output.name for output in trained.outputs] == list(trained.labels)
    assert {output.kind for output in trained.outputs} == {"binary"}
    assert "unstated" in trained.licence
    trained_further = checkpoint.with_name("other.ckpt")
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"best": {"value": 1.0, "samples_seen": 3}}, trained_further)
    shutil.copy(decisions_file(checkpoint), decisions_file(trained_further))
    assert TrainedModel.load(trained_further).decisions is None


def test_what_fine_tuning_writes_is_read(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    outputs = [{"name": label} for label in content["spec"]["labels"]]
    outputs[0] |= {"kind": "regression", "unit": "years", "mean": 60.0, "std": 15.0}
    more = {"outputs": outputs, "licence": "MIT", "provenance": {"derived_from_official": True}}
    path = checkpoint.with_name("tuned.ckpt")
    torch.save(content | {"spec": content["spec"] | more}, path)
    trained = TrainedModel.load(path)
    assert trained.outputs[0].unit == "years" and trained.licence == "MIT"
    assert trained.provenance["derived_from_official"] and trained.provenance["kind"] == "run"
    outputs[0]["name"] = "another"
    torch.save(content | {"spec": content["spec"] | more}, path)
    with pytest.raises(UserError, match="its outputs are not its labels"):
        TrainedModel.load(path)


@pytest.mark.parametrize("num_leads", [12, 1])
def test_official_weights_load_with_their_profile(tmp_path: Path, num_leads: int) -> None:
    trained = TrainedModel.load(official(tmp_path, num_leads))
    assert trained.labels == label_names("ecgfounder150") and trained.model_name == "net1d_1m"
    assert trained.profile.name == "official" and len(trained.profile.leads) == num_leads
    assert trained.profile.leads[0] == "I" and trained.transform.num_leads == num_leads
    assert (
        trained.licence == OFFICIAL_LICENCE and trained.provenance["official"]["val_auroc"] == 0.9
    )
    assert trained.decisions is None


def test_the_official_profile_is_that_of_the_configs() -> None:
    config = yaml.safe_load((tiny.REPOSITORY / "configs" / "signal" / "official.yaml").read_text())
    assert SignalProfile.from_config(OFFICIAL_SIGNAL) == SignalProfile.from_config(config)


def test_a_bare_state_dict_of_unlisted_widths_loads(tmp_path: Path) -> None:
    config = {"widths": (16, 48), "depths": (1, 2), "base_filters": 16}
    torch.save(create_model("net1d_1m", **config).state_dict(), tmp_path / "bare.pt")
    trained = TrainedModel.load(tmp_path / "bare.pt")
    assert {key: trained.model_config[key] for key in config} == config


def test_an_export_is_the_checkpoint_over_again(checkpoint: Path, tmp_path: Path) -> None:
    trained = TrainedModel.load(checkpoint)
    write_bundle(tmp_path / "out", trained.describe(), trained.model.state_dict())
    x = torch.randn(3, 12, 1000)
    for path in (tmp_path / "out", tmp_path / "out" / WEIGHTS_FILE):
        again = TrainedModel.load(path)
        assert torch.equal(again.model(x), trained.model(x))
        for name in ("labels", "profile", "lead_choice", "outputs", "licence", "fingerprints",
                     "samples_seen", "vocabulary", "vocabulary_facts"):  # fmt: skip
            assert getattr(again, name) == getattr(trained, name), name
        assert again.decisions is not None and trained.decisions is not None
        assert again.decisions.to_dict() == trained.decisions.to_dict()


def test_contradictions_in_an_export_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    trained = TrainedModel.load(checkpoint)
    write_bundle(tmp_path, trained.describe(), trained.model.state_dict())
    path = tmp_path / DESCRIPTION_FILE
    content = json.loads(path.read_text())
    turned = content["outputs"][::-1]
    fewer = content["model"] | {"widths": [16, 64]}
    cut = {key: value for key, value in content["decisions"].items() if key != "thresholds"}
    for changes, message in (
        ({"outputs": turned}, "not the labels of its vocabulary 'ptbxl_super5'"),
        ({"outputs": turned[1:], "vocabulary": {}}, "calibration is of other labels"),
        ({"outputs": turned[1:], "vocabulary": {}, "decisions": None}, "dense.weight has shape"),
        ({"lead_choice": "lead_I"}, "network of 12 leads, but lead_choice=lead_I"),
        ({"model": fewer}, "has shape"),
        ({"model": content["model"] | {"name": "net9d"}}, "'net9d' is unknown"),
        ({"signal": content["signal"] | {"fss": 3}}, "fss"),
        ({"decisions": cut}, "incomplete thresholds"),
        ({"decisions": content["decisions"] | {"format_version": 7}}, "another format version"),
    ):  # fmt: skip
        path.write_text(json.dumps(content | changes))
        with pytest.raises(UserError, match=message):
            TrainedModel.load(tmp_path)


def test_foreign_files_are_named_for_what_they_are(checkpoint: Path, tmp_path: Path) -> None:
    def refused(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message):
            TrainedModel.load(path)

    refused(tmp_path / "absent.pth", "There is no checkpoint")
    (tmp_path / "text.pth").write_text("not found: 404\n")
    refused(tmp_path / "text.pth", "It is not a checkpoint")
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "is damaged")
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("photo.jpg", b"1234")
    refused(tmp_path / "photos.pth", "It is not a checkpoint")
    whole = official(tmp_path, 12).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.pth", "is damaged")
    lightning = {"pytorch-lightning_version": "2.6", "state_dict": {"model.w": torch.zeros(2)}}
    torch.save(lightning, tmp_path / "lightning.ckpt")
    refused(tmp_path / "lightning.ckpt", "no Net1D in it.*Lightning checkpoint of another program")
    torch.save({"state_dict": [1]}, tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "is a list, not a state dict")
    five = create_model("net1d_1m", num_labels=5)
    torch.save(five.state_dict(), tmp_path / "five.pth")
    refused(tmp_path / "five.pth", "has 5 outputs and does not say which")
    torch.save(create_model("net1d_1m", num_leads=3).state_dict(), tmp_path / "three.pth")
    refused(tmp_path / "three.pth", "takes 3 leads")
    state = create_model("net1d_1m").state_dict()
    state["dense.bias"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    refused(tmp_path / "nan.pth", "dense.bias holds NaN")
    del state["stage_list.3.block_list.1.se_fc1.weight"]
    torch.save(state, tmp_path / "missing.pth")
    refused(tmp_path / "missing.pth", "se_fc1.weight is missing")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", r"There is no ecg_model\.json")


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was-run",))

    for name, content in (
        ("evil.pth", {"state_dict": {}, "step": Evil()}),
        ("evil.ckpt", {"format_version": 1, "spec": Evil()}),
    ):
        torch.save(content, tmp_path / name)
        torch.save(content, tmp_path / f"old_{name}", _use_new_zipfile_serialization=False)
        for path in (tmp_path / name, tmp_path / f"old_{name}"):
            with pytest.raises(UserError, match="contains code, which is never run"):
                TrainedModel.load(path)
    assert not (tmp_path / "was-run").exists()


def test_files_from_before_the_zip_format_load(tmp_path: Path) -> None:
    model = create_model("net1d_1m")
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    loaded = TrainedModel.load(tmp_path / "old.pth").model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in model.state_dict().items())

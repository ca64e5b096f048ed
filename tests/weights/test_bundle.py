"""A bundle is whole and of this version, or refused with what is wrong."""

import json
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import tiny_set as tiny
import torch
import yaml

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import create_model
from ecgfounder_train.weights.bundle import (
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    describe,
    read_bundle,
    write_bundle,
)
from ecgfounder_train.weights.checkpoint import damage
from ecgfounder_train.weights.outputs import MAX_OUTPUTS, Output, parse_outputs
from ecgfounder_train.weights.trained_model import TrainedModel


def description() -> dict[str, Any]:
    return describe(
        {"name": "net1d_1m"},
        1,
        "all",
        (Output("A"), Output("B")),
        {"name": "mine"},
        {},
        None,
        "",
        {},
    )


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return create_model("net1d_1m", num_leads=1, num_labels=2).state_dict()


def test_weights_come_back_bit_for_bit(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_bundle(tmp_path / "out", description(), state)
    for path in (tmp_path / "out", tmp_path / "out" / WEIGHTS_FILE):
        bundle = read_bundle(path)
        assert bundle.state.keys() == state.keys()
        assert all(torch.equal(bundle.state[key], value) for key, value in state.items())
    assert {key: bundle.description[key] for key in description()} == description()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_halves_the_file_and_returns_as_float32(
    state: dict[str, torch.Tensor], tmp_path: Path, precision: str
) -> None:
    write_bundle(tmp_path / "full", description(), state)
    write_bundle(tmp_path / "half", description(), state, precision)
    sizes = [(tmp_path / name / WEIGHTS_FILE).stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    weight = read_bundle(tmp_path / "half").state["dense.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["dense.weight"].to(getattr(torch, precision)).float())


def change_json(folder: Path, **changes: Any) -> None:
    path = folder / DESCRIPTION_FILE
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "gone"}))


def test_damaged_bundles_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "out", description(), state)
    weights, whole = folder / WEIGHTS_FILE, (folder / WEIGHTS_FILE).read_bytes()
    for length in (0, 5, 1000, len(whole) - 1):
        weights.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
            read_bundle(folder)
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="another SHA-256"):
        read_bundle(folder)
    weights.unlink()
    with pytest.raises(UserError, match=r"There is no model\.safetensors"):
        read_bundle(folder)


def test_json_of_another_kind_is_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "out", description(), state)
    for changes, message in (
        ({"format_version": 99}, "has format 99"),
        ({"format": "other"}, "does not describe a model"),
        ({"signal": "gone", "outputs": "gone"}, "lacks outputs, signal"),
        ({"weights": "model.safetensors"}, "does not name a file"),
        ({"weights": {"file": "../model.safetensors", "sha256": ""}}, "There is no"),
    ):
        before = (folder / DESCRIPTION_FILE).read_text()
        change_json(folder, **changes)
        with pytest.raises(UserError, match=message):
            read_bundle(folder)
        (folder / DESCRIPTION_FILE).write_text(before)
    (folder / DESCRIPTION_FILE).write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        read_bundle(folder)
    (folder / DESCRIPTION_FILE).unlink()
    with pytest.raises(UserError, match=r"There is no ecg_model\.json .* keep it beside them"):
        read_bundle(folder / WEIGHTS_FILE)


def test_a_killed_export_leaves_no_bundle(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ecgfounder_train.weights.bundle.save", stop)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "out", description(), state)
    assert list((tmp_path / "out").iterdir()) == []


def test_outputs_are_checked() -> None:
    output = Output("age", "regression", "years", 60.0, 15.0)
    assert parse_outputs([output.to_dict()], "x.json") == (output,)
    for item, message in (
        ({"name": "a", "kind": "binry"}, "unknown kind 'binry'.*'binary'"),
        ({"name": "a", "std": 0.0}, "std above 0"),
        ({"name": "a", "units": "s"}, "unknown key 'units'.*'unit'"),
        ({"kind": "binary"}, "without a name"),
    ):
        with pytest.raises(UserError, match=message):
            parse_outputs([item], "x.json")
    with pytest.raises(UserError, match="'a' twice"):
        parse_outputs([{"name": "a"}, {"name": "a"}], "x.json")


@pytest.mark.parametrize(
    "model",
    [
        {"num_leads": 10**9},
        {"model": {"name": "net1d_1m", "widths": [16 << 30], "depths": [1]}},
        {"model": {"name": "net1d_1m", "widths": [16, 32], "depths": [10**9, 1]}},
        {"model": {"name": "net1d_1m", "base_filters": 2**62}},
        {"model": {"name": "net1d_1m", "widths": ["a"], "depths": ["b"]}},
        {"model": {"name": "net1d_1m", "depths": 3}},
        {"num_leads": 2},
    ],
)
def test_network_is_compared_with_its_tensors_before_memory_is_taken(
    state: dict[str, torch.Tensor], tmp_path: Path, model: dict[str, Any]
) -> None:
    config = yaml.safe_load((tiny.REPOSITORY / "configs/signal/zscore.yaml").read_text())
    content = {**description(), "signal": {**config, "leads": ["I"]}, **model}
    write_bundle(tmp_path, content, state)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=DESCRIPTION_FILE):
        TrainedModel.load(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_number_of_outputs_is_bounded_and_repeats_are_found_fast(tmp_path: Path) -> None:
    names = [{"name": f"o{number}"} for number in range(MAX_OUTPUTS + 1)]
    with pytest.raises(UserError, match="does not list up to 10,000 outputs"):
        parse_outputs(names, "file")
    assert len(parse_outputs(names[:-1], "file")) == MAX_OUTPUTS
    with pytest.raises(UserError, match="twice"):
        parse_outputs([*names[:-2], names[0]], "file")


def test_nested_or_endless_description_is_named(
    state: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path, description(), state)
    path = tmp_path / DESCRIPTION_FILE
    path.write_text("[" * 200_000)
    with pytest.raises(UserError, match="is damaged"):
        read_bundle(tmp_path)
    monkeypatch.setattr("ecgfounder_train.weights.bundle._MAX_DESCRIPTION_BYTES", 1000)
    with pytest.raises(UserError, match="larger than 1,000 bytes"):
        read_bundle(tmp_path)


def test_compressed_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(100_000)}, tmp_path / "plain.ckpt")
    assert damage(tmp_path / "plain.ckpt") is None
    packed = tmp_path / "packed.ckpt"
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert "is compressed" in (damage(packed) or "")

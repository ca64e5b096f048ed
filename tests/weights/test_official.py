"""Released checkpoints load safely and strictly; anything else is refused with its reason."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import Net1D, create_model
from ecgfounder_train.weights.official import load_official


def released_form(model: Net1D) -> dict[str, Any]:
    """A checkpoint with the members and types of the released file."""
    optimizer = torch.optim.AdamW(model.dense.parameters(), lr=1e-3)
    model(torch.randn(1, model.num_leads, 64)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.1, 10)
    scheduler.step(np.float64(0.9204))
    return {
        "epoch": 1,
        "step": 10_000,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_auroc": np.float64(0.9204),
    }


@pytest.fixture(scope="module")
def small() -> Net1D:
    torch.manual_seed(3)
    return create_model("net1d_1m", num_leads=1, num_labels=4)


def test_official_state_dict_loads_strict(tmp_path: Path) -> None:
    torch.manual_seed(3)
    original = create_model("net1d_31m").eval()
    path = tmp_path / "12_lead_ECGFounder.pth"
    torch.save(released_form(original), path)
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(path, weights_only=True)  # why allow-listing is needed at all
    loaded = load_official(path)
    assert not loaded.training
    x = torch.randn(1, 12, 500)
    with torch.no_grad():
        assert torch.equal(loaded(x), original(x))
    state = loaded.state_dict()
    assert len(state) == 509
    assert all(torch.equal(state[key], value) for key, value in original.state_dict().items())


def test_leads_and_labels_are_read_from_the_tensors(small: Net1D, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "bare.pt")
    loaded = load_official(tmp_path / "bare.pt", name="net1d_1m", drop_path=0.1)
    assert (loaded.num_leads, loaded.num_labels) == (1, 4)
    assert loaded.config.drop_path == 0.1


def test_checkpoints_written_under_numpy_1_load(small: Net1D, tmp_path: Path) -> None:
    new, old = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save(released_form(small), new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for member in source.namelist():
            content = source.read(member)
            if member.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(member, content)
    assert load_official(old, name="net1d_1m").num_labels == 4


def test_data_parallel_prefixes_are_dropped(small: Net1D) -> None:
    state = {f"module.{key}": value for key, value in small.state_dict().items()}
    loaded = load_official({"state_dict": state}, name="net1d_1m")
    assert torch.equal(loaded.dense.weight, small.dense.weight)


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-run"),))


def test_a_file_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "step": RunsCode()}, "evil.pth")
    with pytest.raises(UserError, match="cannot be read"):
        load_official("evil.pth")
    assert not Path("was-run").exists()


def test_unusable_files_are_named(small: Net1D, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no checkpoint file .*absent\.pth"):
        load_official(tmp_path / "absent.pth")
    whole = tmp_path / "whole.pth"
    torch.save(released_form(small), whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut\.pth is damaged"):
        load_official(cut, name="net1d_1m")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        load_official(tmp_path / "list.pth")
    with pytest.raises(UserError, match="no Net1D in it"):
        load_official({"state_dict": {"conv.weight": torch.zeros(1)}})


def test_weights_of_another_size_are_refused_with_the_difference(small: Net1D) -> None:
    state = dict(small.state_dict())
    with pytest.raises(UserError, match=r"does not hold a net1d_2m.*instead of"):
        load_official(state, name="net1d_2m")
    del state["first_bn.running_var"]
    with pytest.raises(UserError, match=r"first_bn\.running_var is missing"):
        load_official(state, name="net1d_1m")

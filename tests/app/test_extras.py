"""Optional packages: each missing one is named with the extra that installs it."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.extras import EXTRAS, needs

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def blocked(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make an import of these packages fail as if they were not installed."""
    for package in packages:
        for name in [item for item in sys.modules if item.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)


def test_every_extra_of_the_project_is_known_to_the_errors() -> None:
    assert {*EXTRAS, "dev"} == set(PROJECT["optional-dependencies"])


def test_missing_package_is_named_with_its_extra() -> None:
    with (
        pytest.raises(UserError, match=r"needs the package nowhere.*ecgfounder_train\[search\]"),
        needs("search", "ablate sweep"),
    ):
        import nowhere  # noqa: F401


def test_bug_in_our_own_imports_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError), needs("search", "ablate sweep"):
        import ecgfounder_train.nowhere  # noqa: F401


@pytest.mark.parametrize(
    ("package", "suffix", "extra"),
    [("pydicom", "dcm", "formats"), ("ecgdatakit", "scp", "formats"), ("h5py", "h5", "formats")],
)
def test_file_of_an_optional_format_names_the_extra(
    package: str, suffix: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib import import_module

    from ecgfounder_train.inference.inputs import InputOptions

    modules = {"dcm": "dicom_files", "scp": "exchange_files", "h5": "hdf5_files"}
    reader = import_module(f"ecgfounder_train.inference.inputs.{modules[suffix]}")
    path = tmp_path / f"ecg.{suffix}"
    path.write_bytes(np.arange(100, dtype=np.int16).tobytes())
    blocked(monkeypatch, package)
    with pytest.raises(UserError, match=rf"needs the package {package}.*train\[{extra}\]"):
        reader.read(path, "", InputOptions(None, None, None))


def test_dask_executor_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ecgfounder_train.shards.engines import DaskEngine, ExecutorOptions

    blocked(monkeypatch, "dask")
    engine = DaskEngine(ExecutorOptions(kind="local"), 2, tmp_path)
    with pytest.raises(UserError, match=r"executor=local needs the package dask.*\[cluster\]"):
        engine.__enter__()


def test_wandb_logger_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ecgfounder_train.core.run_directory import RunDirectory
    from ecgfounder_train.settings.training import WandbLogger
    from ecgfounder_train.training.loggers import create_loggers

    blocked(monkeypatch, "wandb")
    with pytest.raises(UserError, match=r"logger=wandb needs the package wandb.*\[wandb\]"):
        create_loggers(WandbLogger(), RunDirectory(tmp_path), {})


def test_sweep_and_export_name_their_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    from ecgfounder_train.commands.ablate import main

    blocked(monkeypatch, "optuna", "huggingface_hub", "onnxruntime")
    monkeypatch.delitem(sys.modules, "ecgfounder_train.ablation.search", raising=False)
    with pytest.raises(UserError, match=r"ablate sweep needs the package optuna.*\[search\]"):
        main({}, "sweep")
    from ecgfounder_train.export.hub import from_pretrained

    with pytest.raises(UserError, match=r"huggingface_hub, which.*\[export\]"):
        from_pretrained("someone/model")

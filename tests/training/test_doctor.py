"""scripts/doctor.py finds out what would go wrong, and leaves no trace."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import run_tools
import tiny_set
import torch
from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.doctor import examine
from ecgfounder_train.training.module import PretrainModule


def doctor(shards: ShardSet | Path, runs: Path, *more: str) -> int:
    overrides = tiny_set.tiny_overrides(shards, runs, "examined", "format=json", *more)
    config = OmegaConf.to_container(compose_config("doctor", overrides), resolve=True)
    assert isinstance(config, dict)
    return examine({str(key): value for key, value in config.items()})


def findings(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    text = capsys.readouterr().out
    return {item["check"]: item for item in json.loads(text[text.index("[") :])}


def test_healthy_run_is_ok_and_nothing_is_written(
    tiny_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(tiny_shards, tmp_path) == 0
    found = findings(capsys)
    assert set(found) == {"samples", "disk", "ranks", "shards", "dry run", "reading", "whole run"}
    assert {item["state"] for item in found.values()} <= {"ok", "warn"}
    assert "63 training samples" in found["samples"]["found"]
    assert not list(tmp_path.iterdir())


def test_more_ranks_are_compared_and_their_network_measured(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    arguments = tiny_set.tiny_overrides(tiny_shards, tmp_path, "run", "trainer=ddp_cpu")
    command = [sys.executable, str(run_tools.SCRIPTS / "doctor.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 x " in done.stdout and "on 2 rank(s)" in done.stdout
    assert "network" in done.stdout and "GB/s over all ranks" in done.stdout
    assert not list(tmp_path.iterdir())


def test_damaged_sample_fails_with_what_to_do(
    tiny_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    folder = tmp_path / "shards"
    shutil.copytree(tiny_shards.folder, folder)
    for entry in tiny_shards.index[tiny_shards.rows("test")]:
        path = folder / Path(tiny_shards.shard_path(int(entry["shard"]))).name
        with path.open("r+b") as handle:
            handle.seek(int(entry["offset"]) + tiny_shards.layout.ecg.offset + 40)
            handle.write(b"\xaa\x55\xaa\x55")
    assert doctor(folder, tmp_path) == 1
    found = findings(capsys)["shards"]
    assert found["state"] == "fail" and "rank 0" in found["found"]
    assert "verify.py" in found["remedy"]


def test_step_that_is_no_number_or_does_not_fit_fails(
    tiny_shards: ShardSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = PretrainModule.training_step

    def poisoned(module: PretrainModule, batch: Any, batch_idx: int) -> torch.Tensor:
        return original(module, batch, batch_idx) * torch.nan

    monkeypatch.setattr(PretrainModule, "training_step", poisoned)
    assert doctor(tiny_shards, tmp_path) == 1
    assert "not finite" in findings(capsys)["dry run"]["found"]

    def too_large(module: PretrainModule, batch: Any, batch_idx: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(PretrainModule, "training_step", too_large)
    assert doctor(tiny_shards, tmp_path) == 1
    found = findings(capsys)["dry run"]
    assert "out of memory" in found["found"] and found["remedy"] == "data.batch_size_per_rank=8"


def test_too_little_data_or_disk_is_told(
    tiny_shards: ShardSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert doctor(tiny_shards, tmp_path, "data.global_batch_size=1024") == 1
    found = findings(capsys)["samples"]
    assert found["state"] == "fail" and "1 steps of 1,024" in found["found"]
    assert doctor(tiny_shards, tmp_path, "checkpoint.keep=100000000") == 1
    found = findings(capsys)["disk"]
    assert found["state"] == "fail" and "paths.runs" in found["remedy"]
    with pytest.raises(UserError, match="format='csv'"):
        doctor(tiny_shards, tmp_path, "format=csv")

"""Bad samples and bad steps: named, skipped or counted, by all ranks alike."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import run_tools
import tiny_set
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.faults import FaultSettings
from ecgfounder_train.training.module import PretrainModule

Pretrain = Callable[..., RunDirectory]


@pytest.fixture
def nan_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the losses of one sample no numbers at given samples seen."""

    def arm(*seen: int) -> None:
        original = PretrainModule.__init__

        def armed(module: PretrainModule, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            loss = module.loss

            class Poisoned(torch.nn.Module):
                def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
                    elements: torch.Tensor = loss(*inputs)
                    if module.training and module.samples_seen in seen:
                        poison = torch.ones_like(elements)
                        poison[3] = torch.nan
                        elements = elements * poison
                    return elements

            module.loss = Poisoned()

        monkeypatch.setattr(PretrainModule, "__init__", armed)

    return arm


def test_bad_step_is_skipped_counted_and_its_record_named(
    pretrain: Pretrain,
    nan_at: Callable[..., None],
    tiny_shards: ShardSet,
    capsys: pytest.CaptureFixture[str],
) -> None:
    nan_at(32)
    run = pretrain("faults.on_bad_loss=skip", "ema.half_life_samples=50")
    printed = capsys.readouterr().err
    assert "skipped the step before 48 samples: gradient norm nan" in printed
    key = printed.split("Largest losses: records ")[1].split(" ")[0]
    assert key.encode() in tiny_shards.index["record_key"].tolist()
    assert printed.split("Largest losses: ")[1].split("\n")[0].count("(inf)") == 1
    assert "1 steps with a bad gradient were skipped" in printed
    counts = [row["skipped_steps"] for row in run_tools.rows(run) if row["train/grad_norm"]]
    assert counts == ["0", "0", "1", "1", "1", "1", "1", "1"]
    checkpoint = run_tools.last_checkpoint(run)
    assert checkpoint["faults"]["skipped_steps"] == 1
    for part in ("model", "ema"):
        assert all(value.isfinite().all() for value in checkpoint[part].values())


def test_half_precision_keeps_no_losses_of_former_steps(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, where it is refused: what is looked at is only what the step keeps.
    monkeypatch.setattr(L.Trainer, "precision", "16-mixed")
    finish, noted = PretrainModule.finish_step, []

    def counted(module: PretrainModule) -> None:
        noted.append(len(module.suspects._noted))
        finish(module)

    monkeypatch.setattr(PretrainModule, "finish_step", counted)
    pretrain("data.batch_size_per_rank=8")
    assert len(noted) == 8 and set(noted) == {0}


def test_run_with_skipped_steps_resumes_to_the_last_bit(
    pretrain: Pretrain, nan_at: Callable[..., None]
) -> None:
    nan_at(16, 79)
    settings = ("faults.on_bad_loss=skip", "ema.half_life_samples=50", "log_every_steps=3")
    whole = pretrain(*settings, run="whole")
    run = pretrain(*settings, "checkpoint.every_samples=16")
    steps = sorted(run.checkpoints.glob("step-*.ckpt"))
    steps[-1].unlink()
    pretrain(*settings, "checkpoint.every_samples=16")
    run_tools.assert_same_run(run, whole)


def test_stop_names_the_record_with_the_bad_loss(
    pretrain: Pretrain, nan_at: Callable[..., None], tiny_shards: ShardSet
) -> None:
    nan_at(16)
    with pytest.raises(UserError, match=r"before 32 samples.*records ([0-9a-f]{32}) \(inf\)") as e:
        pretrain()
    key = str(e.value).split("records ")[1].split(" ")[0]
    assert key.encode() in tiny_shards.index["record_key"].tolist()


def test_gradient_above_the_limit_is_bad_and_a_row_of_bad_steps_ends_the_run(
    pretrain: Pretrain,
) -> None:
    with pytest.raises(UserError, match=r"above faults\.max_grad_norm before 48 samples"):
        pretrain("faults.on_bad_loss=skip", "faults.max_grad_norm=1e-9", "faults.max_skipped=2")


@pytest.mark.parametrize(
    "wrong", [{"on_bad_loss": "ignore"}, {"max_grad_norm": 0.0}, {"max_skipped": -1}]
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"faults\.{next(iter(wrong))}"):
        FaultSettings.from_config(wrong)


def cut_under_way(
    shards: ShardSet, tmp_path: Path, *more: str
) -> tuple[subprocess.Popen[str], RunDirectory]:
    """Start two ranks and truncate a training shard when they have made some steps."""
    shutil.copytree(shards.folder, tmp_path / "shards")
    copied = ShardSet.open(tmp_path / "shards")
    arguments = tiny_set.tiny_overrides(
        copied, tmp_path, "run", "trainer=ddp_cpu", "checkpoint.every_samples=16", *more
    )
    process = run_tools.command(arguments)
    run = RunDirectory(tmp_path / "run")
    run_tools.wait_for_step(run, 3, lambda: process.poll() is None)
    path = copied.shard_path(int(copied.index[copied.rows("train")[0]]["shard"]))
    os.truncate(path, 3000)
    return process, run


@pytest.mark.slow
@pytest.mark.multiprocess
def test_shard_cut_under_way_ends_both_ranks_with_its_name(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    process, _ = cut_under_way(tiny_shards, tmp_path, "budget.max_epochs=1000")
    output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    assert process.returncode == 1
    assert "ends too early" in output and "verify.py" in output
    # Neither rank was left to find out from a broken connection.
    assert "Traceback" not in output and "onnection" not in output


@pytest.mark.slow
@pytest.mark.multiprocess
def test_quarantine_goes_on_without_the_shard_and_counts_over_ranks(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    process, run = cut_under_way(
        tiny_shards, tmp_path, "budget.max_epochs=40", "data.on_bad_sample=quarantine"
    )
    output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    assert process.returncode == 0, output
    assert "warning: quarantined a sample" in output
    rows = [row for row in run_tools.rows(run) if row["train/loss"]]
    lost = [int(row["quarantined"]) for row in rows]
    assert lost == sorted(lost) and lost[0] == 0 < lost[-1]
    total = run_tools.last_checkpoint(run)["faults"]["quarantined"]
    assert f"{total:,} unreadable samples were left out" in output
    # Every epoch behind the cut lost that shard's samples, whichever rank met them.
    per_epoch = tiny_shards.manifest.shards[
        int(tiny_shards.index[tiny_shards.rows("train")[0]]["shard"])
    ].num_samples
    assert lost[-1] - lost[-1 - 4 * 3] == 3 * per_epoch
    assert all(float(row["train/loss"]) > 0 for row in rows)

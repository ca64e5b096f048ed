"""The same command is idempotent, and a run is one experiment."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import run_tools
import tiny_set
import torch
from run_tools import rows

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.loggers import _wandb_id
from ecgfounder_train.training.runs import list_runs
from ecgfounder_train.training.starts import read_starts
from ecgfounder_train.weights.checkpoint import step_name

Pretrain = Callable[..., RunDirectory]


def contents(run: RunDirectory) -> dict[str, tuple[bytes, int]]:
    """Everything in a run's folder, with the times at which it was written."""
    return {
        str(path.relative_to(run.path)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in run.path.rglob("*")
        if path.is_file()
    }


def test_run_begun_from_a_path_continues_its_own_line(
    pretrain: Pretrain, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pretrain("budget.max_epochs=1", run="source")
    path = source.checkpoints / step_name(4)
    run = pretrain("budget.max_epochs=2", f"resume={path}")
    before = rows(run)
    capsys.readouterr()
    pretrain("budget.max_epochs=3", f"resume={path}")
    assert "has a later checkpoint (step-000000008.ckpt)" in capsys.readouterr().err
    assert rows(run)[: len(before)] == before and rows(run)[-1]["samples_seen"] == "189"
    # Also when the file has been moved, or deleted.
    moved = source.path / "moved.ckpt"
    path.rename(moved)
    pretrain("budget.max_epochs=3", f"resume={moved}")
    moved.unlink()
    pretrain("budget.max_epochs=4", f"resume={path}")
    assert rows(run)[-1]["samples_seen"] == "252"


def test_an_older_checkpoint_of_the_run_does_not_undo_the_newer_ones(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=3", "checkpoint.keep=9")
    pretrain("budget.max_epochs=4", f"resume={run.checkpoints / step_name(4)}")
    assert rows(run)[-1]["samples_seen"] == "252"
    assert (run.checkpoints / step_name(12)).is_file()


def test_a_strange_checkpoint_does_not_replace_a_run(pretrain: Pretrain) -> None:
    source = pretrain("budget.max_epochs=1", run="source")
    run = pretrain("budget.max_epochs=2")
    before = contents(run)
    with pytest.raises(UserError, match="did not begin with"):
        pretrain("budget.max_epochs=3", f"resume={source.checkpoints / step_name(4)}")
    assert contents(run) == before


@pytest.mark.parametrize("rest", ["deleted", "cut"])
def test_best_checkpoint_alone_is_continued_from(pretrain: Pretrain, rest: str) -> None:
    constant = "schedule=constant"
    pretrain("budget.max_epochs=3", constant, run="whole")
    run = pretrain("budget.max_epochs=2", constant)
    best = run.checkpoints / "best.ckpt"
    content = best.read_bytes()
    best.unlink()
    best.write_bytes(content)
    step = int(torch.load(best, weights_only=True)["position"]["global_step"])
    for path in run.checkpoints.glob("step-*"):
        if rest == "deleted":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning) if rest == "cut" else run_tools.no_warning():
        pretrain("budget.max_epochs=3", constant)
    assert read_starts(run)[-1]["position"]["global_step"] == step
    run_tools.assert_same_run(run, RunDirectory(run.path.with_name("whole")))


@pytest.mark.parametrize("rest", ["deleted", "cut"])
def test_run_whose_checkpoints_are_lost_is_not_begun_again(pretrain: Pretrain, rest: str) -> None:
    run = pretrain("budget.max_epochs=1")
    for path in run.checkpoints.iterdir():
        path.unlink() if rest == "deleted" else path.write_bytes(b"cut")
    before = contents(run)
    with pytest.raises(UserError, match=r"cannot be continued.*overwrite=true"):
        pretrain("budget.max_epochs=2")
    assert contents(run) == before


def test_overwrite_moves_the_former_run_aside_once(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1")
    former = contents(run)
    for _ in range(3):
        pretrain("budget.max_epochs=1", "optimizer.lr=1e-4", "overwrite=true")
    aside = RunDirectory(run.path.with_name("run.replaced-1"))
    assert {name: content for name, (content, _) in contents(aside).items() if name != ".lock"} == {
        name: content for name, (content, _) in former.items() if name != ".lock"
    }
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["run", "run.replaced-1"]
    assert len(read_starts(run)) == 1


@pytest.mark.parametrize("left", ["metrics.csv", "config.yaml", "anything.txt"])
def test_resume_none_refuses_a_folder_that_holds_anything(
    pretrain: Pretrain, tmp_path: Path, left: str
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("x")
    with pytest.raises(UserError, match="resume=none begins new runs only"):
        pretrain("budget.max_epochs=1", "resume=none")


def test_start_of_a_complete_run_writes_nothing(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1")
    before = contents(run)
    pretrain("budget.max_epochs=1")
    assert contents(run) == before


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer.lr": "1e-2"},
        {"loss": "focal"},
        {"data.global_batch_size": "32"},
        {"augmentation": "shift_gain", "gradient_clip_norm": "1.0"},
        {"checkpoint.monitor": "val/loss"},
        {"trainer.precision": "bf16-mixed"},
        {"schedule": "constant"},
        {"budget.validate_every_samples": "16"},
    ],
)
def test_changed_experiment_is_refused_listed_and_allowed_by_name(
    pretrain: Pretrain, change: dict[str, str]
) -> None:
    run = pretrain("budget.max_epochs=1")
    before = contents(run)
    overrides = [f"{key}={value}" for key, value in change.items()]
    for budget in ("budget.max_epochs=1", "budget.max_epochs=2"):
        with pytest.raises(UserError) as refusal:
            pretrain(budget, *overrides)
        for key in change:
            assert key in str(refusal.value)
    assert contents(run) == before
    advice = str(refusal.value).split("resume.allow=[")[1].split("]")[0]
    pretrain("budget.max_samples=80", *overrides, f"resume.allow=[{advice}]")
    first, second = read_starts(run)
    assert first["changed"] == {} and second["changed"]
    assert first["config"]["optimizer"]["lr"] == 1e-3
    with run.metrics_file.open() as handle:
        starts = [row["start"] for row in csv.DictReader(handle)]
    assert set(starts) == {"1", "2"} and starts == sorted(starts)


def test_how_and_where_a_run_happens_may_change(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1")
    pretrain(
        "budget.max_epochs=2",
        "log_every_steps=2",
        "checkpoint.keep=5",
        "data.num_workers=0",
        "data.batch_size_per_rank=8",
        "budget.patience=9",
        "faults.on_bad_loss=skip",
        "logger=tensorboard",
    )
    assert rows(run)[-1]["samples_seen"] == "126"


def test_best_of_another_measure_begins_from_scratch_and_the_former_stays(
    pretrain: Pretrain, capsys: pytest.CaptureFixture[str]
) -> None:
    run = pretrain("budget.max_epochs=2", "checkpoint.monitor=val/loss")
    former = (run.checkpoints / "best.ckpt").read_bytes()
    changed = ("checkpoint.monitor=val/macro_auroc", "resume.allow=[checkpoint.monitor]")
    pretrain("budget.max_epochs=3", *changed)
    assert "monitor was 'val/loss', is 'val/macro_auroc'" in capsys.readouterr().err
    best = run_tools.last_checkpoint(run)["best"]
    assert best["samples_seen"] == 189 and best["measure"]["monitor"] == "val/macro_auroc"
    assert (run.checkpoints / "best-before-start-2.ckpt").read_bytes() == former


def test_loss_under_another_loss_is_another_measure(pretrain: Pretrain) -> None:
    monitored = "checkpoint.monitor=val/loss"
    run = pretrain("budget.max_epochs=2", monitored)
    pretrain("budget.max_epochs=3", monitored, "loss=focal", "resume.allow=[loss]")
    assert run_tools.last_checkpoint(run)["best"]["samples_seen"] == 189
    assert len(run_tools.last_checkpoint(run)["scores"]) == 1


def test_validations_closer_than_a_batch_count_once(pretrain: Pretrain) -> None:
    nothing_learnt = ("optimizer.lr=1e-30", "optimizer.weight_decay=0", "budget.max_epochs=9")
    run = pretrain(*nothing_learnt, "budget.patience=3", "budget.validate_every_samples=1")
    assert len([row for row in rows(run) if row["val/loss"]]) == 4


def test_renamed_run_is_known_by_its_present_name(tiny_shards: ShardSet, tmp_path: Path) -> None:
    arguments = tiny_set.tiny_overrides(tiny_shards, tmp_path, "old", "overwrite=true")
    child = run_tools.Child([*arguments, "budget.max_epochs=999"], tmp_path / "out.txt")
    run_tools.wait_for_step(RunDirectory(tmp_path / "old"), 2, child.alive)
    child.process.kill()
    child.wait()
    (tmp_path / "old").rename(tmp_path / "2026_new")
    (found,) = list_runs(tmp_path)
    assert "run=2026_new" in found.resume and "run=old" not in found.resume
    assert "overwrite" not in found.resume
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    (tmp_path / "2026_new").rename(moved / "2026_new")
    (found,) = list_runs(moved)
    assert f"paths.runs={moved}" in found.resume


def test_wandb_id_belongs_to_the_folder(tmp_path: Path) -> None:
    one, other = (RunDirectory(tmp_path / place / "first") for place in ("a", "b"))
    assert _wandb_id(one) == _wandb_id(one) != _wandb_id(other)
    shutil.move(one.path, tmp_path / "a" / "second")
    assert _wandb_id(RunDirectory(tmp_path / "a" / "second")) != _wandb_id(one)
    earlier = RunDirectory(tmp_path / "earlier")
    (earlier.path / "wandb" / "offline-run-20260101_000000-abc123").mkdir(parents=True)
    assert _wandb_id(earlier) == "abc123"


def test_damaged_record_of_starts_is_named(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1")
    text = run.starts_file.read_text()
    # A line that a kill has cut is left out.
    run.starts_file.write_text(text + '{"start": 2, "conf')
    pretrain("budget.max_epochs=2")
    run.starts_file.write_text("not a record\n" + text)
    with pytest.raises(UserError, match=r"starts\.jsonl is damaged in line 1"):
        pretrain("budget.max_epochs=3")


def test_memory_limit_names_the_batch_size_that_fits(tiny_shards: ShardSet, tmp_path: Path) -> None:
    code = (
        "import json, re, resource, sys\n"
        "from pathlib import Path\n"
        "from ecgfounder_train.training.pretrain import train\n"
        "used = int(re.search(r'VmSize:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "limit = (used << 10) + (900 << 20)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "train(json.loads(sys.argv[1]))"
    )
    size = ("data.global_batch_size=8192", "data.num_workers=0", "budget.max_epochs=1")
    config = tiny_set.tiny_config(tiny_shards, tmp_path, "run", *size)
    process = subprocess.run(
        [sys.executable, "-c", code, json.dumps(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    last = process.stderr.strip().splitlines()[-1]
    assert "Out of memory with data.batch_size_per_rank=8192" in last, process.stderr
    assert "fits (tried)" in last

"""What a run leaves behind, what it refuses, and how it fails."""

import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_tools
import tiny_set
import torch
from run_tools import Child, rows

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.shards import BuildOptions, ShardSet
from ecgfounder_train.splits import PatientSplit
from ecgfounder_train.training.metrics_log import MetricsLog
from ecgfounder_train.weights.checkpoint import find_checkpoint, load_checkpoint, step_name
from ecgfounder_train.weights.trained_model import TrainedModel

Pretrain = Callable[..., RunDirectory]


def identifiers(shards: ShardSet) -> list[bytes]:
    """Return what no file that may leave the machine can contain."""
    entries = shards.index[:50]
    keys = [*entries["record_key"].tolist(), *entries["patient_key"].tolist()]
    assert all(len(key) == 32 for key in keys)
    words = [str(Path.home()), str(Path.cwd()), str(shards.folder), "shards="]
    # A name of two or three letters occurs in any weights.
    words += [platform.node()] if len(platform.node()) > 5 else []
    stems = [tiny_set.PATIENT.format(number) for number in range(100)]
    return [word.encode() for word in [*words, *stems, "20190317"]] + keys


def test_checkpoint_holds_what_the_design_says_in_plain_containers(
    undisturbed: RunDirectory,
) -> None:
    checkpoint = torch.load(find_checkpoint(undisturbed, "last"), weights_only=True)
    assert {"model", "ema", "optimizer", "position", "rng", "config", "fingerprints"} <= set(
        checkpoint
    )
    assert {"versions", "hardware", "spec", "best", "window", "precision"} <= set(checkpoint)
    assert checkpoint["position"]["samples_seen"] == 12 * 63
    assert checkpoint["config"]["model"]["dropout"] == 0.1

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(plain(item) for item in value.values())
        if isinstance(value, list | tuple):
            return all(plain(item) for item in value)
        return isinstance(value, torch.Tensor | str | int | float | None)

    assert plain(checkpoint)


def test_no_path_host_or_record_in_checkpoints_and_state(
    tiny_shards: ShardSet, pretrain: Pretrain
) -> None:
    # A checkpoint given by its path is the tempting case.
    first = pretrain("budget.max_epochs=1", run="first")
    run = pretrain("budget.max_epochs=2", f"resume={find_checkpoint(first, 'last')}")
    files = [run.state_file, run.metrics_file, *run.checkpoints.iterdir()]
    assert len(files) >= 3
    for path in files:
        content = path.read_bytes()
        for word in [*identifiers(tiny_shards), str(run.path.parent).encode()]:
            assert word not in content, (path.name, word)


def test_run_directory_tells_state_best_and_versions(undisturbed: RunDirectory) -> None:
    state = json.loads(undisturbed.state_file.read_text())
    assert state["state"] == "finished"
    assert state["samples_seen"] == state["total_samples"] == 12 * 63
    validations = [row for row in rows(undisturbed) if row["val/macro_auroc"]]
    best = max(float(row["val/macro_auroc"]) for row in validations)
    assert state["best"]["value"] == best
    assert state["versions"]["torch"] == torch.__version__
    at_best = torch.load(undisturbed.checkpoints / "best.ckpt", weights_only=True)
    assert at_best["best"]["value"] == best
    assert at_best["position"]["samples_seen"] == state["best"]["samples_seen"]
    assert len(list(undisturbed.checkpoints.glob("step-*.ckpt"))) == 2
    assert load_checkpoint(undisturbed.checkpoints / step_name(48))


def test_validation_and_log_fall_where_they_should(undisturbed: RunDirectory) -> None:
    seen = [int(row["samples_seen"]) for row in rows(undisturbed) if row["val/loss"]]
    # With the first step that reaches each hundred, and at the end; epochs have 63 samples.
    assert len(seen) == 8 and seen[-1] == 756
    assert all(0 <= value - 100 * (number + 1) < 16 for number, value in enumerate(seen[:-1]))
    steps = [int(row["global_step"]) for row in rows(undisturbed) if row["train/loss"]]
    assert steps == list(range(3, 49, 3))


def test_training_learns(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=25", "optimizer.lr=1e-2", "schedule=one_cycle")
    losses = [float(row["train/loss"]) for row in rows(run) if row["train/loss"]]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert float(rows(run)[-1]["val/macro_auroc"]) > 0.75


def test_run_is_repeatable_and_depends_on_its_seed(pretrain: Pretrain) -> None:
    one, two = pretrain(run="one"), pretrain(run="two")
    run_tools.assert_same_run(one, two)
    other = pretrain("seed=1", run="other")
    assert rows(other) != rows(one)


def test_accumulation_changes_only_rounding(pretrain: Pretrain) -> None:
    whole = rows(pretrain(run="whole"))
    parts = rows(pretrain("data.batch_size_per_rank=2", run="parts"))
    for one, other in zip(whole, parts, strict=True):
        for name in ("train/loss", "train/grad_norm", "lr", "val/loss"):
            assert bool(one[name]) == bool(other[name])
            if one[name]:
                assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-4)


def test_bfloat16_trains_on_a_cpu(pretrain: Pretrain) -> None:
    run = pretrain("trainer.precision=bf16-mixed", "budget.max_epochs=1", run="half")
    plain = pretrain("budget.max_epochs=1", run="plain")
    loss = [float(rows(one)[0]["train/loss"]) for one in (run, plain)]
    assert loss[0] != loss[1] and loss[0] == pytest.approx(loss[1], rel=0.02)
    weights = run_tools.last_checkpoint(run)["model"].values()
    assert all(value.dtype != torch.bfloat16 for value in weights)


def test_single_lead_training_from_twelve_lead_shards(pretrain: Pretrain) -> None:
    run = pretrain("data.lead_choice=published", "budget.max_epochs=1")
    trained = TrainedModel.load(find_checkpoint(run, "best"))
    assert trained.transform.num_leads == 1
    assert run_tools.last_checkpoint(run)["spec"]["num_leads"] == 1


def test_monitoring_the_loss_keeps_the_smallest(pretrain: Pretrain) -> None:
    run = pretrain("checkpoint.monitor=val/loss", "checkpoint.mode=min", "budget.max_epochs=4")
    losses = [float(row["val/loss"]) for row in rows(run) if row["val/loss"]]
    best = torch.load(run.checkpoints / "best.ckpt", weights_only=True)["best"]
    assert len(losses) == 4 and best["value"] == min(losses)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("log_every_steps=0", "log_every_steps=0 must be at least 1"),
        ("log_every_steps=often", "log_every_steps='often' is not int"),
        ("seed=-1", "seed=-1"),
        ("gradient_clip_norm=-1.0", "gradient_clip_norm"),
        ("ema.half_life_samples=0", "ema.half_life_samples"),
        ("budget.max_epochs=0", "budget.max_epochs=0"),
        ("budget.validate_group=superclas", "budget.validate_group='superclas'.*superclass"),
        ("data.global_batch_size=10", "cannot be divided.*multiple of 4"),
        ("data.lead_choice=lead_II", "lead_choice='lead_II' is unknown"),
        ("checkpoint.keep=0", "checkpoint.keep=0"),
        ("checkpoint.monitor=val/los", "checkpoint.monitor='val/los'"),
        ("trainer.precision=64", "trainer.precision=64 is unknown"),
        ("trainer.precision=16-mixed", "needs a GPU"),
        ("trainer.devices=0", "must be at least 1"),
        ("trainer.num_threads=-1", "trainer.num_threads=-1 must be at least 1"),
        ("checkpoint.every_samples=0", "checkpoint.every_samples=0 must be at least 1"),
        ("optimizer.beta2=1.0", r"optimizer.beta2=1\.0 must be at least 0 and below 1"),
        ("optimizer.eps=-1e-8", "optimizer.eps"),
        ("logger.kind=mlflow", "logger.kind='mlflow' is unknown"),
        ("resume=nowhere.ckpt", "no checkpoint nowhere.ckpt"),
        ("run=a/b", "run='a/b' cannot name a folder"),
        ("shards=nowhere", "nowhere"),
    ],
)
def test_mistake_is_named_before_the_first_file_is_written(
    pretrain: Pretrain, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain("data.batch_size_per_rank=4", override)
    assert not list(tmp_path.rglob("*.yaml"))


def test_resume_with_another_choice_of_what_decays_is_refused(
    pretrain: Pretrain, tmp_path: Path
) -> None:
    run = pretrain("budget.max_epochs=1")
    before = run.config_file.read_text()
    with pytest.raises(UserError, match=r"optimizer\.decay_all=True, now False"):
        pretrain("budget.max_epochs=2", "optimizer.decay_all=false")
    assert run.config_file.read_text() == before


def test_training_without_validation_part_is_refused(tiny_set: Any, tmp_path: Path) -> None:
    import polars as pl
    import tiny_set as tiny

    catalog = tiny_set.catalog.filter(pl.col("split") != "val")
    shards = tiny.build(catalog, tiny_set.root, tmp_path / "shards")
    from ecgfounder_train.training.pretrain import train

    with pytest.raises(UserError, match="hold no val samples"):
        train(tiny.tiny_config(shards, tmp_path, "run"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (
            {"vocabulary": Vocabulary.load("ptbxl_super5", closure="none")},
            "vocabulary or options of its labels (options.closure=parents, now none)",
        ),
        ({"profile": tiny_set.profile("official")}, "signal profile (name=zscore, now official"),
        ({"split": PatientSplit(seed=9)}, "split into train, val and test"),
        ({"options": BuildOptions(records_per_shard=12, seed=4)}, "set of shards"),
    ],
    ids=["vocabulary", "profile", "split", "data"],
)
def test_resume_on_other_shards_names_what_differs(
    tiny_set: Any,
    pretrain: Pretrain,
    tmp_path: Path,
    changes: dict[str, Any],
    what: str,
) -> None:
    import tiny_set as tiny

    pretrain("budget.max_epochs=1")
    other = tiny.build(tiny_set.catalog, tiny_set.root, tmp_path / "other", **changes)
    with pytest.raises(UserError) as refusal:
        pretrain("budget.max_epochs=2", f"shards={other.folder}")
    # Only what differs is named; that with the labels, profile or split so do the shards is plain.
    found = str(refusal.value)
    assert (
        f"is incompatible with these settings: another {what}" in found
        and " and another " not in found
    )
    assert "Use the original settings" in found
    assert "or a new run=NAME" in found
    assert ("with the shards= it was trained on" in found) == (what != "set of shards")


def test_vanished_shard_stops_training_with_its_name(
    tiny_shards: ShardSet, tmp_path: Path, pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(tiny_shards.folder, folder)
    opened = ShardSet.open(folder)
    (folder / "train-000002.tar").unlink()
    monkeypatch.setattr(ShardSet, "open", lambda _: opened)
    with pytest.raises(UserError, match=r"train-000002\.tar"):
        pretrain(f"shards={folder}")


def test_diverged_run_stops_with_its_last_good_checkpoint(pretrain: Pretrain) -> None:
    run = pretrain("budget.max_epochs=1")
    good = run_tools.last_checkpoint(run)
    with pytest.raises(UserError, match=r"NaN, infinite.*lower optimizer\.lr"):
        allowed = "resume.allow=[optimizer.lr]"
        pretrain("budget.max_epochs=3", "optimizer.lr=1e30", "log_every_steps=50", allowed)
    run_tools.assert_identical(run_tools.last_checkpoint(run), good, "checkpoint")
    pretrain("budget.max_epochs=3")


def test_weights_ruined_by_the_last_step_before_a_validation_are_not_saved(
    pretrain: Pretrain,
) -> None:
    run = pretrain("budget.max_epochs=1")
    with pytest.raises(UserError, match=r"NaN.*the last good checkpoint"):
        # One step, whose gradient is finite, then a validation.
        pretrain("budget.max_samples=79", "optimizer.lr=1e38", "resume.allow=[optimizer]")
    assert run_tools.latest_step(run) == 4


def test_infinite_statistics_stop_the_run(
    tiny_shards: ShardSet, tmp_path: Path, pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecgfounder_train.loader.reader import SampleArrays, SampleReader

    read_into = SampleReader.read_into

    def with_infinity(reader: SampleReader, *arguments: Any) -> SampleArrays:
        samples = read_into(reader, *arguments)
        samples.stats[0, 0, 0] = np.inf
        return samples

    monkeypatch.setattr(SampleReader, "read_into", with_infinity)
    with pytest.raises(UserError, match="NaN, infinite"):
        pretrain("budget.max_epochs=1")


def cut(path: Path, share: float) -> Path:
    """Copy a checkpoint and cut it."""
    content = path.read_bytes()
    target = path.with_name("cut.pt")
    target.write_bytes(content[: int(share * len(content))])
    return target


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_checkpoint_cut_in_the_middle_is_refused(pretrain: Pretrain, share: float) -> None:
    damaged = cut(find_checkpoint(pretrain("budget.max_epochs=1"), "last"), share)
    with pytest.raises(UserError, match=r"cut\.pt is damaged \(not a whole file"):
        pretrain(f"resume={damaged}", run="other")
    with pytest.raises(UserError, match=r"cut\.pt is damaged"):
        TrainedModel.load(damaged)


def test_foreign_files_are_refused_without_running_them(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"model": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()
    torch.save({"model": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no format_version, optimizer"):
        load_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "absent.ckpt")


def test_checkpoint_of_another_format_version_is_refused(
    undisturbed: RunDirectory, tmp_path: Path
) -> None:
    checkpoint = torch.load(find_checkpoint(undisturbed, "last"), weights_only=True)
    torch.save({**checkpoint, "format_version": 99}, tmp_path / "new.ckpt")
    with pytest.raises(UserError, match="checkpoint format 99"):
        load_checkpoint(tmp_path / "new.ckpt")


def test_run_of_another_format_version_is_left_alone_and_told_how_to_go_on(
    pretrain: Pretrain,
) -> None:
    run = pretrain("budget.max_epochs=1")
    newest = find_checkpoint(run, "last")
    torch.save({**torch.load(newest, weights_only=True), "format_version": 99}, newest)
    before = newest.read_bytes()
    with pytest.raises(
        UserError,
        match=r"checkpoint format 99.*Use the version that wrote it \(0.*or train from scratch",
    ):
        pretrain("budget.max_epochs=2")
    assert newest.read_bytes() == before


@pytest.mark.multiprocess
def test_full_disk_keeps_the_old_checkpoint_and_says_so(
    tiny_shards: ShardSet, tmp_path: Path, pretrain: Pretrain
) -> None:
    run = pretrain("budget.max_epochs=1")
    size = find_checkpoint(run, "last").stat().st_size
    arguments = tiny_set.tiny_overrides(
        tiny_shards,
        tmp_path,
        "run",
        "budget.max_epochs=1000",
        "ema.half_life_samples=100",
        "resume.allow=[ema]",
    )
    before = {path.name: path.read_bytes() for path in run.checkpoints.iterdir()}
    # With the weight average a checkpoint is larger than this.
    child = Child(arguments, tmp_path / "output.txt", max_file_bytes=size)
    assert child.wait() == 1
    assert "error: Cannot write" in child.text() and "Free space" in child.text()
    assert "Traceback" not in child.text()
    assert {path.name: path.read_bytes() for path in run.checkpoints.iterdir()} == before
    pretrain("budget.max_epochs=2")


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    tool = shutil.which("mount")
    return (
        tool is not None
        and subprocess.run(
            [tool, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )


@pytest.mark.parametrize("background", ["false", "true"])
def test_really_full_disk_keeps_the_old_checkpoint(
    tmp_path: Path, tiny_shards: ShardSet, background: str
) -> None:
    from ecgfounder_train.training.pretrain import train

    runs = tmp_path / "disk"
    if not mounted(runs, "2m"):
        pytest.skip("cannot mount a small file system here")
    try:
        thread = f"checkpoint.background={background}"
        small = ("budget.max_epochs=1", "checkpoint.keep=1", thread)
        assert train(tiny_set.tiny_config(tiny_shards, runs, "run", *small)) == 0
        run = RunDirectory(runs / "run")
        whole = run_tools.last_checkpoint(run)
        free = shutil.disk_usage(runs).free
        (runs / "ballast").write_bytes(b"x" * (free - 100_000))
        with pytest.raises(UserError, match=r"Cannot write.*Free space"):
            train(tiny_set.tiny_config(tiny_shards, runs, "run", "budget.max_epochs=9", thread))
        run_tools.assert_identical(run_tools.last_checkpoint(run), whole, "checkpoint")
        (runs / "ballast").unlink()
        assert train(tiny_set.tiny_config(tiny_shards, runs, "run", "budget.max_epochs=2")) == 0
    finally:
        subprocess.run(["umount", str(runs)], check=True)


def test_full_disk_under_the_log_is_an_error_of_the_user(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.csv", 0, [], ["val/loss"], 1)
    log.path = Path("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        log.write({"samples_seen": 16, "global_step": 1})


def test_tensorboard_gets_the_numbers_of_the_log(pretrain: Pretrain) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = pretrain("logger=tensorboard")
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("train/loss")]
    assert logged == pytest.approx(
        [float(row["train/loss"]) for row in rows(run) if row["train/loss"]]
    )
    assert len(events.Scalars("val/macro_auroc")) == 2


@pytest.mark.slow
def test_wandb_offline_learns_no_host_path_or_command(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    arguments = tiny_set.tiny_overrides(
        tiny_shards, tmp_path / "runs", "wandb_run", "logger=wandb", "logger.mode=offline"
    )
    environment = {name: value for name, value in os.environ.items() if "WANDB" not in name}
    # The control: what wandb tells of itself holds the host's name, set to one that can be found.
    host, named = "telltale-host-4711", []
    if shutil.which("unshare") and os.geteuid() == 0:
        named = ["unshare", "--uts", "sh", "-c", f'hostname {host}; exec "$@"', "sh"]
    start = "import wandb; wandb.init(mode='offline', dir='.').finish()"
    trial = subprocess.run(
        [*named, sys.executable, "-c", start],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
        timeout=120,
    )
    if trial.returncode:
        pytest.skip("wandb does not start here, not even by itself")
    if named:
        plain = b"".join(path.read_bytes() for path in tmp_path.rglob("*.wandb"))
        assert host.encode() in plain
    command = [*named, sys.executable, str(run_tools.SCRIPTS / "pretrain.py"), *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    output, _ = process.communicate(timeout=run_tools.TIMEOUT_S)
    assert process.returncode == 0, output
    assert "switched off" not in output, output
    folder = tmp_path / "runs" / "wandb_run" / "wandb"
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    sent = [path for path in files if path.suffix == ".wandb" or "files" in path.parts]
    assert any(path.suffix == ".wandb" for path in sent)
    # A resumed or requeued run is the same one there.
    run_id = (folder.parent / "wandb_id").read_text()
    assert [path.name.split("-")[-1] for path in folder.glob("offline-run-*")] == [run_id]
    content = b"".join(path.read_bytes() for path in sent)
    assert b"macro_auroc" in content
    forbidden = [*identifiers(tiny_shards), str(tmp_path).encode(), b"pretrain.py", b"paths.runs"]
    forbidden.append(host.encode())
    found = [word for word in forbidden if word in content]
    assert not found


def test_failing_logger_is_a_warning(
    pretrain: Pretrain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lightning.pytorch.loggers import TensorBoardLogger

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("server away")

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", broken)
    run = pretrain("logger=tensorboard")
    assert "TensorBoardLogger failed (server away); it is switched off" in capsys.readouterr().err
    assert len(rows(run)) == 10


def test_training_is_silent_about_lightning(
    pretrain: Pretrain, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pretrain("budget.max_epochs=1")
    shown = capsys.readouterr()
    assert "ightning" not in shown.out + shown.err
    assert len(shown.out.splitlines()) == 1


def test_training_without_progress_ends_and_is_known_as_complete(
    pretrain: Pretrain, capsys: pytest.CaptureFixture[str]
) -> None:
    # A learning rate too small to move a weight: no validation is better than the first.
    settings = (
        "optimizer.lr=1e-30",
        "optimizer.weight_decay=0",
        "budget.max_epochs=9",
        "budget.patience=2",
    )
    run = pretrain(*settings)
    validated = [row for row in rows(run) if row["val/loss"]]
    assert len(validated) == 3
    state = json.loads(run.state_file.read_text())
    assert state["state"] == "finished" and state["samples_seen"] < state["total_samples"]
    capsys.readouterr()
    pretrain(*settings)
    assert "is complete. Evaluate" in capsys.readouterr().out

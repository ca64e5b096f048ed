"""Members are ordinary runs: trained once, gone on with, named when they fail, never mixed."""

import itertools
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_tools
import torch
from ablation_tools import FAST, ablation_config, quoted

from ecgfounder_train.ablation.plan import Ablation
from ecgfounder_train.ablation.report import report_ablation
from ecgfounder_train.ablation.running import list_members, plan_members, run_ablation
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.loader.patients import patient_rows
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.checkpoint import newest_whole

Trained = tuple[Path, dict[str, Any]]
NAMES = [f"tiny__{size}__seed{seed}" for seed in (0, 1) for size in ("25k", "60k")]


def states(base: Path) -> dict[str, str]:
    return {
        path.parent.name: json.loads(path.read_text())["state"]
        for path in sorted((base / "runs").glob("*/run.json"))
    }


def test_every_member_is_an_ordinary_finished_run_of_the_size_asked_for(
    trained_ablation: Trained,
) -> None:
    base, _ = trained_ablation
    assert states(base) == dict.fromkeys(sorted(NAMES), "finished")
    for name in NAMES:
        run = RunDirectory.existing(base / "runs", name)
        path = newest_whole(run)
        assert path is not None
        checkpoint = torch.load(path, weights_only=True)
        assert 64 <= checkpoint["position"]["samples_seen"] < 64 + 16  # to within a batch
        total = sum(
            value.numel()
            for key, value in checkpoint["model"].items()
            if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        )
        assert total / {"25k": 2.5e4, "60k": 6e4}[name.split("__")[1]] == pytest.approx(
            1, abs=0.005
        )
        assert checkpoint["spec"]["model"]["widths"]  # solved, so that no reader has to


def test_second_run_trains_only_what_is_missing_and_to_the_same_bits(
    trained_ablation: Trained, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    base, _ = trained_ablation
    shutil.copytree(base / "runs", tmp_path / "runs")
    gone = tmp_path / "runs" / NAMES[2]
    shutil.rmtree(gone)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.ckpt")}
    assert run_ablation(ablation_config(tiny_shards, tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run_tools.assert_same_run(RunDirectory(gone), RunDirectory(base / "runs" / NAMES[2]))


def test_signal_stops_after_a_step_and_the_next_call_goes_on_to_the_same_bits(
    trained_ablation: Trained, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    extra = quoted("overrides", ["checkpoint.every_samples=16"])
    config = ablation_config(tiny_shards, tmp_path, "ablation.axes.seed=[1]", extra)
    run = RunDirectory(tmp_path / "runs" / NAMES[2])

    def stop_once_begun() -> None:
        while run_tools.latest_step(run) < 1:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_once_begun)
    thread.start()
    assert run_ablation(config) == 128 + signal.SIGTERM
    thread.join()
    assert NAMES[3] not in states(tmp_path)  # it did not go on to the next member
    assert run_ablation(config) == 0
    for name in (NAMES[2], NAMES[3]):
        one, other = (
            RunDirectory(tmp_path / "runs" / name),
            RunDirectory(trained_ablation[0] / "runs" / name),
        )
        assert run_tools.rows(one) == run_tools.rows(other)
        run_tools.assert_identical(
            run_tools.last_checkpoint(one)["model"], run_tools.last_checkpoint(other)["model"], name
        )


def test_failed_member_is_named_and_the_rest_is_trained(
    tiny_shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ablation_config(
        tiny_shards,
        tmp_path,
        "~ablation.axes.model",
        "ablation.axes.seed=[0]",
        '+ablation.axes.loss.broken=["loss.pos_weight=[1,2]"]',
        '+ablation.axes.loss.sound=["loss.pos_weight=2"]',
        quoted(
            "ablation.overrides", ["model=net1d_family", "model.target_parameters=25000", *FAST]
        ),
    )
    assert run_ablation(config) == 1
    shown = capfd.readouterr().err
    assert "tiny__broken__seed0: exit status 1" in shown and "1 of 2 members are finished" in shown
    assert states(tmp_path) == {"tiny__sound__seed0": "finished"}


def test_member_that_exists_with_other_settings_is_refused_by_the_key(
    trained_ablation: Trained, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    shutil.copytree(trained_ablation[0] / "runs", tmp_path / "runs")
    other = quoted("overrides", ["optimizer.lr=5e-4"])
    with pytest.raises(UserError, match=r"optimizer.lr=0.001 instead of 0.0005"):
        run_ablation(ablation_config(tiny_shards, tmp_path, other))
    with pytest.raises(UserError, match=r"budget.max_samples=64 instead of 128"):
        run_ablation(ablation_config(tiny_shards, tmp_path, "ablation.budget.samples=128"))


def test_one_member_by_its_number_is_what_an_array_task_trains(
    tiny_shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ablation_config(tiny_shards, tmp_path, "member=1", "ablation.budget.samples=16")
    assert run_ablation(config) == 0
    assert list(states(tmp_path)) == [NAMES[1]]
    assert list_members(config) == 0
    listed = capsys.readouterr().out
    assert "16 of 16 ECGs, finished" in listed and "0 of 16 ECGs, missing" in listed
    with pytest.raises(UserError, match="member=4 is none of 0 to 3"):
        run_ablation({**config, "member": 4})


def test_flop_budget_gives_small_networks_more_ecgs(tiny_shards: ShardSet, tmp_path: Path) -> None:
    config = ablation_config(
        tiny_shards, tmp_path, "ablation.budget.samples=null", "ablation.budget.flops=1e11"
    )
    members = plan_members(Ablation.from_config(config))
    assert all(item.flops == pytest.approx(1e11, rel=0.01) for item in members)
    by_size = {item.parameters: item.samples for item in members}
    assert by_size[min(by_size)] > by_size[max(by_size)]
    assert all(f"budget.max_samples={i.samples}" in i.member.arguments for i in members)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ablation.axes.model=[net1d_13m]"], "There is no model=net1d_13m. Did you mean"),
        (["ablation.axes.model=[1000]"], "nearest"),
        (["ablation.axes.model=[25000,25000]"], "twice"),
        (["ablation.axes.model=net1d_1m"], "is no list of values"),
        (["ablation.axes.model=[]"], "is no list of values"),
        (["ablation.axes.model=[[1]]"], "no single value"),
        (["~ablation.axes.model", "~ablation.axes.seed"], "ablation.axes is empty"),
        (["+ablation.axes.optimizer.lrr=[1,2]"], "no key 'optimizer.lrr'"),
        (["ablation.budget.flops=1e12"], "one budget"),
        (["ablation.budget.samples=0"], "above 0"),
        (["overrides=[fast]"], "no key=value"),
        (["shards=nowhere"], "nowhere"),
    ],
)
def test_bad_grid_is_refused_before_anything_is_trained(
    arguments: list[str], message: str, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run_ablation(ablation_config(tiny_shards, tmp_path, *arguments))
    assert not (tmp_path / "runs").exists()


def test_run_without_shards_says_that_it_needs_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs shards=DIR"):
        run_ablation(ablation_config(None, tmp_path))
    with pytest.raises(UserError, match="No member of the ablation tiny is finished"):
        report_ablation(ablation_config(None, tmp_path))


def test_shares_of_patients_are_nested_and_keep_patients_whole(tiny_shards: ShardSet) -> None:
    keys = tiny_shards.index["patient_key"]
    shares = [patient_rows(tiny_shards, share, seed=3) for share in (0.2, 0.5, 0.8, 1.0)]
    for small, large in itertools.pairwise(shares):
        assert set(small.tolist()) < set(large.tolist())
    train = tiny_shards.rows("train")
    assert shares[-1].tolist() == train.tolist()
    for rows in shares:
        patients = set(keys[rows].tolist())
        assert [r for r in train.tolist() if keys[r] in patients] == rows.tolist()
    assert set(patient_rows(tiny_shards, 0.5, seed=4).tolist()) != set(shares[1].tolist())
    with pytest.raises(UserError, match="leaves none"):
        patient_rows(tiny_shards, 1e-9, seed=0)


def test_share_is_about_as_large_as_asked_for() -> None:
    class Index:
        manifest = None
        index = np.zeros(4000, [("patient_key", "S8")])

        def rows(self, split: str) -> np.ndarray:
            return np.arange(4000)

    shards = Index()
    shards.index["patient_key"] = [f"p{number // 2}".encode() for number in range(4000)]
    taken = len(patient_rows(shards, 0.3, seed=0)) / 4000  # type: ignore[arg-type]
    assert taken == pytest.approx(0.3, abs=0.04)


def test_run_on_a_share_sees_only_it_and_does_not_go_on_with_another(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    import tiny_set

    from ecgfounder_train.training.pretrain import train

    words = ("data.patient_fraction=0.5", "budget.max_epochs=2")
    assert train(tiny_set.tiny_config(tiny_shards, tmp_path, "half", *words)) == 0
    run = RunDirectory(tmp_path / "half")
    rows = len(patient_rows(tiny_shards, 0.5, 0))
    assert json.loads(run.state_file.read_text())["total_samples"] == 2 * rows
    for other in ("data.patient_fraction=0.6", "data.patient_fraction=1.0", "data.patient_seed=1"):
        config = tiny_set.tiny_config(tiny_shards, tmp_path, "half", *words, other)
        with pytest.raises(UserError, match="another share of the training patients"):
            train(config)
    with pytest.raises(UserError, match="patient_fraction"):
        train(tiny_set.tiny_config(tiny_shards, tmp_path, "none", "data.patient_fraction=0.0"))


def test_rate_of_a_larger_network_follows_the_power_rule(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    rule = [
        "schedule=constant",
        "optimizer.lr=1e-3",
        "optimizer.lr_rule=power",
        "optimizer.lr_reference_parameters=25000",
        "optimizer.lr_exponent=-0.5",
    ]
    config = ablation_config(
        tiny_shards,
        tmp_path,
        quoted("overrides", rule),
        "ablation.budget.samples=16",
        "ablation.axes.seed=[0]",
    )
    assert run_ablation(config) == 0
    rates = {}
    for item in plan_members(Ablation.from_config(config)):
        rows = run_tools.rows(RunDirectory(tmp_path / "runs" / item.member.name))
        rates[item.parameters] = float(rows[0]["lr"])
    for parameters, rate in rates.items():
        assert rate == pytest.approx(1e-3 * (parameters / 25000) ** -0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optimizer.lr_rule=mup"], "optimizer.lr_rule='mup' is unknown"),
        (["optimizer.lr_rule=power"], "needs optimizer.lr_reference_parameters"),
        (["optimizer.lr_exponent=0.3"], "at least -1 and at most 0"),
    ],
)
def test_rule_without_what_it_needs_is_refused(
    words: list[str], message: str, tiny_shards: ShardSet, tmp_path: Path
) -> None:
    import tiny_set

    from ecgfounder_train.training.pretrain import train

    with pytest.raises(UserError, match=message):
        train(tiny_set.tiny_config(tiny_shards, tmp_path, "run", *words))

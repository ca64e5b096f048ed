"""Members as jobs of a real SLURM: submitted, waited for, found again, all finished."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import run_tools
import tiny_set
from ablation_tools import FAST, ablation_config, quoted
from slurm_cluster import LocalSlurm

from ecgfounder_train.ablation.running import MemberJob, run_ablation
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.shards import ShardSet

SLURM = "hydra/launcher=submitit_slurm"


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ECG_TEST_TIER") != "all", reason="ECG_TEST_TIER=all only")
def test_launcher_of_the_issue_trains_every_member_without_accounting(
    local_slurm: LocalSlurm,
    tiny_shards: ShardSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CONF", local_slurm.env["SLURM_CONF"])
    words = [SLURM, "hydra.launcher.timeout_min=10", "hydra.launcher.cpus_per_task=1"]
    config = ablation_config(tiny_shards, tmp_path, *words, "ablation.axes.seed=[0]")
    assert run_ablation(config) == 0
    said = capsys.readouterr().out
    assert "submitted 2 jobs" in said and "All 2 members are finished" in said
    for size in ("25k", "60k"):
        run = RunDirectory.existing(tmp_path / "runs", f"tiny__{size}__seed0")
        assert '"finished"' in run.state_file.read_text()
    assert run_ablation(config) == 0
    assert "submitted 0 jobs" in capsys.readouterr().out


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ECG_TEST_TIER") != "all", reason="ECG_TEST_TIER=all only")
@pytest.mark.parametrize("event", ["time limit", "preemption"])
def test_member_of_an_array_is_saved_comes_back_and_equals_the_undisturbed_one(
    local_slurm: LocalSlurm, tiny_shards: ShardSet, tmp_path: Path, event: str
) -> None:
    def words(base: Path) -> list[str]:
        return [
            "ablation.name=tiny",
            "ablation.axes.model=[25000]",
            "ablation.axes.seed=[0]",
            "ablation.budget.samples=6400",
            quoted("ablation.overrides", [*FAST, "checkpoint.every_samples=160"]),
            f"paths.runs={base / 'runs'}",
            f"paths.ablations={base / 'ablations'}",
            f"shards={tiny_shards.folder}",
        ]

    def member(base: Path) -> RunDirectory:
        return RunDirectory(base / "runs" / "tiny__25k__seed0")

    log = tmp_path / "job.log"
    options = ["--array=0", "--cpus-per-task=1", "--gpus-per-task=0", f"--output={log}"]
    options += [f"--chdir={tiny_set.REPOSITORY}", f"--export=ALL,PYTHON={sys.executable}"]
    disturbed, whole = tmp_path / "disturbed", tmp_path / "whole"
    local_slurm.run("sbatch", *options, "slurm/ablate.sbatch", *words(disturbed))

    def wait_until(reached: Callable[[], object], what: str) -> None:
        local_slurm.wait_for(reached, what, log)

    wait_until(lambda: run_tools.latest_step(member(disturbed)) >= 40, "step")
    [(job, _, _)] = local_slurm.jobs()
    if event == "preemption":
        urgent = ("sbatch", "-p", "urgent", "-N3", "--exclusive", "-o", "/dev/null")
        local_slurm.run(*urgent, "--wrap", "sleep 1")
    else:
        # What --signal=USR1@180 does three minutes before the limit.
        local_slurm.run("scancel", "--signal=USR1", job)
    wait_until(lambda: "Resuming run" in log.read_text(), "requeue")
    wait_until(lambda: not local_slurm.jobs(), "end")
    said = log.read_text()
    assert said.count("everything up to here is saved") >= 1
    assert "All 1 members are finished" in said
    undisturbed = [*words(whole), "member=0"]
    script = tiny_set.REPOSITORY / "scripts" / "ablate.py"
    subprocess.run([sys.executable, str(script), "run", *undisturbed], check=True)
    run_tools.assert_same_run(member(disturbed), member(whole))


def test_launcher_without_slurm_is_refused_in_words(
    tiny_shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs SLURM's commands"):
        run_ablation(ablation_config(tiny_shards, tmp_path, SLURM))


def test_other_launchers_are_refused(tiny_shards: ShardSet, tmp_path: Path) -> None:
    words = ["hydra/launcher=submitit_local"]
    with pytest.raises(UserError, match="submitit_slurm"):
        run_ablation(ablation_config(tiny_shards, tmp_path, *words))


def test_launcher_is_of_no_use_to_a_single_run(tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "scripts" / "pretrain.py"
    done = subprocess.run(
        [sys.executable, str(script), "shards=x", "run=a", SLURM],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 1 and "give hydra/launcher= to python scripts/ablate.py" in done.stderr
    )


def test_job_hands_back_the_status_of_the_run(tmp_path: Path) -> None:
    assert MemberJob(["shards=nowhere", "run=a", f"paths.runs={tmp_path}"])() == 1

"""Members as jobs of a real SLURM: submitted, waited for, found again, all finished."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ablation_tools import ablation_config
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
    assert done.returncode == 1 and "give hydra/launcher= to scripts/ablate.py" in done.stderr


def test_job_hands_back_the_status_of_the_run(tmp_path: Path) -> None:
    assert MemberJob(["shards=nowhere", "run=a", f"paths.runs={tmp_path}"])() == 1

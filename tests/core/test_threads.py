"""OpenMP threads: spinning is bounded unless the user says otherwise; busy cores are left alone."""

import os
import subprocess
import sys

import pytest

from ecgfounder_train.core import threads


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, threads.SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, None),
    ],
)
def test_spinning_is_bounded_at_import_and_the_users_variable_wins(
    variables: dict[str, str], expected: str | None
) -> None:
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    code = "import ecgfounder_train, os, sys; assert 'torch' not in sys.modules; "
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize(("load", "expected"), [(0.1, 8), (2.0, 6), (7.9, 1), (50.0, 1)])
def test_idle_cores_decide_the_number_of_threads(
    load: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(threads, "_CGROUP_QUOTA", threads.Path("/nonexistent"))
    assert threads.choose_threads()[0] == expected


def test_affinity_quota_and_omp_num_threads_bound_the_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: threads.Path
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(threads, "_CGROUP_QUOTA", quota)
    quota.write_text("250000 100000\n")
    assert threads.allowed_cores() == 3
    quota.write_text("max 100000\n")
    assert threads.choose_threads()[0] == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert threads.choose_threads() == (2, "2 threads (OMP_NUM_THREADS)")

"""OpenMP threads: spinning is bounded unless the user states otherwise."""

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

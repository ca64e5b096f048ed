"""What a finished run recommends can be done as it is printed."""

import shlex
from collections.abc import Callable

import pytest

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.run_directory import RunDirectory


def test_finished_run_names_the_command_that_finds_it(
    pretrain: Callable[..., RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    # The test's runs lie in a folder of their own, where evaluate.py would not look by itself.
    run = pretrain("budget.max_epochs=1", run="here")
    recommended = capsys.readouterr().out.split("Next: ")[1].splitlines()[0]
    python, script, *overrides = shlex.split(recommended)
    assert (python, script) == ("python", "scripts/evaluate.py")
    config = compose_config("evaluate", overrides)
    assert RunDirectory.existing(config["paths"]["runs"], config["run"]).path == run.path
    pretrain("budget.max_epochs=1", run="here")
    assert recommended in capsys.readouterr().out

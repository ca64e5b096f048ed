"""Recommended commands: what a shell and Hydra read is what was meant."""

import shlex

import pytest

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.commands import DEFAULT_PATHS, command


@pytest.mark.parametrize(
    "place",
    ["data/runs", "my data/runs", "Ärzte, Daten", "it's, x", "$HOME/(a)=b", "x{y}", "[1,2]", "a#b"],
)
def test_recommended_command_is_read_back_whatever_the_folder_is_called(place: str) -> None:
    words = shlex.split(command("evaluate", {"run": "demo", "split": "val"}, {"runs": place}))
    assert words[:2] == ["python", "scripts/evaluate.py"]
    config = compose_config("evaluate", words[2:])
    assert config["paths"]["runs"] == place
    assert (config["run"], config["split"]) == ("demo", "val")


def test_recommended_command_names_no_place_where_the_next_script_looks_anyway() -> None:
    assert compose_config("runs", [])["paths"] == DEFAULT_PATHS
    assert command("evaluate", {"run": "demo"}, DEFAULT_PATHS) == (
        "python scripts/evaluate.py run=demo"
    )
    assert command("ablate report", {}, {**DEFAULT_PATHS, "ablations": "x"}) == (
        "python scripts/ablate.py report paths.ablations=x"
    )

"""What the README tells people to type is accepted, and what it names exists."""

import re
import shlex
from pathlib import Path

import pytest

from ecgfounder_train.app import CONFIGS, compose_config

ROOT = CONFIGS.parent
README = (ROOT / "README.md").read_text()
COMMANDS = sorted(set(re.findall(r"python (scripts/\w+\.py[^`\n]*)", README)))
SBATCH = sorted(set(re.findall(r"(slurm/(\w+)\.sbatch [^`\n]*)", README)))


def test_readme_has_commands_for_every_script() -> None:
    named = {command.split()[0] for command in COMMANDS}
    assert named >= {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_readme_composes(command: str) -> None:
    script, *arguments = shlex.split(command)
    assert (ROOT / script).is_file()
    words = [argument for argument in arguments if "=" in argument]
    if "--multirun" in arguments:
        # The first member of the sweep.
        words = [word if "=[" in word else word.split(",")[0] for word in words]
    config = compose_config(Path(script).stem, words)
    for word in words:
        key = word.split("=", 1)[0]
        own = {*map(str, config), "experiment", "hydra"}
        assert key.replace("/", ".").split(".")[0] in own, word


@pytest.mark.parametrize("line", [line for line, _ in SBATCH])
def test_batch_job_of_the_readme_composes(line: str) -> None:
    script, *arguments = shlex.split(line)
    assert (ROOT / script).is_file()
    compose_config(Path(script).stem, arguments)


def test_files_and_folders_the_readme_names_exist() -> None:
    for path in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for folder in re.findall(r"^\| (`\w+/`(?:, `\w+/`)*) \|", README, flags=re.MULTILINE):
        for name in re.findall(r"`(\w+/)`", folder):
            assert (ROOT / "ecgfounder_train" / name).is_dir(), name


@pytest.mark.parametrize("experiment", sorted(path.stem for path in CONFIGS.glob("experiment/*")))
def test_experiment_states_its_own_command_line(experiment: str) -> None:
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    assert f"experiment={experiment}" in text

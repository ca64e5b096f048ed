"""What README and docs tell people to type is accepted, and what they link to exists."""

import re
import shlex
from pathlib import Path

import pytest
from pages import COMMANDS, PAGES, ROOT, SBATCH, TEXT, anchors

from ecgfounder_train.app import CONFIGS, compose_config


def test_docs_have_commands_for_every_script() -> None:
    named = {command.split()[0] for command in COMMANDS}
    assert named >= {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}


def test_readme_has_at_most_250_lines() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 250


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_page_is_two_clicks_from_the_readme(name: str) -> None:
    reached = {"README.md"}
    for _ in range(2):
        reached |= {str(target) for page in reached for target, _ in links(page)}
    assert name in reached


@pytest.mark.parametrize("command", COMMANDS)
def test_command_of_the_docs_composes(command: str) -> None:
    script, *arguments = shlex.split(command, comments=True)
    assert (ROOT / script).is_file()
    words = [argument for argument in arguments if "=" in argument]
    if "--multirun" in arguments:
        # The first member of the sweep.
        words = [word if "=[" in word else word.split(",")[0] for word in words]
    config = compose_config(Path(script).stem, words)
    for word in words:
        key = word.split("=", 1)[0].lstrip("+")
        own = {*map(str, config), "experiment", "hydra"}
        assert key.replace("/", ".").split(".")[0] in own, word


@pytest.mark.parametrize("line", [line for line, _ in SBATCH])
def test_batch_job_of_the_docs_composes(line: str) -> None:
    script, *arguments = shlex.split(line)
    assert (ROOT / script).is_file()
    compose_config(Path(script).stem, arguments)


def links(page: str) -> list[tuple[Path, str]]:
    """Return file (relative to the repository) and anchor of each link of a page within it."""
    found = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", PAGES.get(page, "")):
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        found.append((target.relative_to(ROOT), anchor))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    for target, anchor in links(page):
        assert (ROOT / target).exists(), target
        if anchor:
            assert anchor in anchors(PAGES[str(target)]), f"{target}#{anchor}"


def test_folders_the_architecture_names_exist() -> None:
    for row in re.findall(r"^\| ((?:`\w+/`(?:, )?)+) \|", TEXT, flags=re.MULTILINE):
        for name in re.findall(r"`(\w+/)`", row):
            assert (ROOT / "ecgfounder_train" / name).is_dir(), name


@pytest.mark.parametrize("experiment", sorted(path.stem for path in CONFIGS.glob("experiment/*")))
def test_experiment_states_its_own_command_line(experiment: str) -> None:
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    assert f"experiment={experiment}" in text

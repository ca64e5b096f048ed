"""Rules of DESIGN.md about where things stand and who may import whom."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ecgfounder_train.app.sections import GROUPS, VERBS, verb_sections
from ecgfounder_train.core.config import statements
from ecgfounder_train.core.errors import RejectReason

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "ecgfounder_train"
MODULES = sorted(PACKAGE.rglob("*.py"))

# DESIGN.md's table; what a package may import, it may also import from further down.
MAY_IMPORT = {
    "core": "",
    "settings": "core",
    "figures": "settings core",
    "records": "settings core",
    "labels": "settings core",
    "simulate": "settings core records labels figures",
    "catalog": "records labels",
    "splits": "catalog",
    "shards": "records splits",
    "data_report": "shards figures labels catalog",
    "loader": "shards",
    "models": "settings core",
    "losses": "settings core",
    "metrics": "settings core",
    "weights": "models labels records loader metrics",
    "training": "weights loader models losses metrics",
    "evaluation": "weights loader models metrics figures records labels",
    "inference": "evaluation",
    "app": "settings core",
}


def imports(path: Path) -> Iterator[str]:
    """Yield the full names of the modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            assert node.module is not None
            yield node.module
            if node.module == "ecgfounder_train":
                yield from (f"ecgfounder_train.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def below(package: str) -> set[str]:
    direct = set(MAY_IMPORT.get(package, "").split())
    return direct.union({package}, *(below(name) for name in direct))


def importers(library: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == library for name in imports(path))
    }


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_imports_go_one_way(path: Path) -> None:
    package = package_of(path)
    if package == "__init__":
        return
    # The later packages (finetuning, ablation, export) take what they need.
    allowed = below(package) if package in MAY_IMPORT else None
    for name in imports(path):
        if name.startswith("ecgfounder_train.") and allowed is not None:
            imported = name.split(".")[1]
            assert imported in allowed or imported == "__version__", f"imports {name}"


def test_only_training_and_the_datamodule_know_lightning() -> None:
    for name in importers("lightning"):
        assert name.startswith(("training/", "finetuning/")) or name == "loader/datamodule.py", name


def test_only_entry_points_know_hydra() -> None:
    assert importers("hydra") <= {
        f"app/{name}.py" for name in ("composition", "sections", "sweeps")
    }
    for script in (REPOSITORY / "scripts").glob("*.py"):
        assert list(imports(script))


@pytest.mark.parametrize(
    "package",
    ["core", "settings", "records", "labels", "catalog", "splits", "shards", "data_report", "app"],
)
def test_table_stages_start_without_torch(package: str) -> None:
    importlib.import_module(f"ecgfounder_train.{package}")  # it exists
    code = f"import sys, ecgfounder_train.{package}; sys.exit('torch' in sys.modules)"
    if package == "core":
        names = [f"ecgfounder_train.core.{path.stem}" for path in (PACKAGE / "core").glob("*.py")]
        code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_is_no_drawer_for_everything() -> None:
    assert not [p for p in MODULES if p.stem.strip("_") in ("utils", "util", "helpers", "misc")]


def test_reject_reasons_are_distinct() -> None:
    values = [reason.value for reason in RejectReason.__members__.values()]
    assert len(values) == len(set(values)) == len(RejectReason)
    assert all(value == value.lower() and " " not in value for value in values)


def test_scripts_are_short_and_named_like_their_configs() -> None:
    scripts = sorted((REPOSITORY / "scripts").glob("*.py"))
    assert {path.stem for path in scripts} >= {"prepare", "pretrain", "evaluate", "predict"}
    for path in scripts:
        assert len(path.read_text().splitlines()) <= 6, path.name
        assert (REPOSITORY / "configs" / f"{path.stem}.yaml").is_file(), path.name
        assert f'run("{path.stem}")' in path.read_text()
        assert (PACKAGE / "commands" / path.name).is_file(), path.name


def leaf_lines(node: yaml.Node, parent: str = "") -> Iterator[tuple[str, int]]:
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        name = f"{parent}{key.value}"
        if name == "defaults":
            continue
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from leaf_lines(value, f"{name}.")
        else:
            yield name, key.start_mark.line


CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


@pytest.mark.parametrize(
    "path", CONFIGS, ids=[str(p.relative_to(REPOSITORY / "configs")) for p in CONFIGS]
)
def test_every_config_key_has_a_comment(path: Path) -> None:
    text = path.read_text()
    lines = text.splitlines()
    assert lines[0].startswith("#"), "a config begins with what it is"
    if path.parent.name in ("experiment", "debug"):
        return  # overrides of keys that have their comment elsewhere
    root = yaml.compose(text)
    if root is None:
        return
    config = yaml.safe_load(text)
    section = GROUPS[path.parent.name].of(config) if path.parent.name in GROUPS else None
    stated = [key for key, *_ in statements(section)] if section else []
    bare = [
        name
        for name, line in leaf_lines(root)
        # Which choice this is stands in the first line of the file.
        if " #" not in lines[line] and name not in ("name", "kind", *stated)
    ]
    assert not bare


def test_every_stated_key_has_a_comment_or_choices_that_say_what_it_means() -> None:
    sections = [cls for group in GROUPS.values() for _, cls in group.nodes()]
    sections += [cls for verb in VERBS for cls in verb_sections(verb)]
    bare = [
        f"{cls.__name__}.{key}"
        for cls in sections
        for key, statement, _ in statements(cls)
        if not statement.comment and not statement.choices
    ]
    assert not bare


def test_no_path_of_a_machine_in_the_repository() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in tracked.stdout.split("\0") if name]
    assert names
    suffixes = {".py", ".md", ".yaml", ".yml", ".sh", ".toml", ".sbatch", ".txt"}
    telltales = ["/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/"]
    found = [
        (name, word)
        for name in names
        if Path(name).suffix in suffixes and (REPOSITORY / name).is_file()
        for word in telltales
        if word in (REPOSITORY / name).read_text(encoding="utf-8")
    ]
    assert not found

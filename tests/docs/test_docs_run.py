"""Every command of README and docs runs, in the order of the work, on small real inputs.

In the quick tier one command of each script; all of them with ECG_TEST_TIER=all.
"""

import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import COMMANDS, PYTHON_BLOCKS, ROOT
from workspace import SKIPPED, arguments, create

ORDER = ("simulate", "prepare", "verify", "pretrain", "doctor", "runs", "evaluate", "export")
ORDER += ("predict", "finetune", "ablate", "bench")
REAL = {"source=cinc2017": "cinc2017", "source=cinc2021": "cinc2021", "source=ludb": "ludb"}
REAL |= {"eval_cinc2017": "cinc2017", "eval_cinc2021": "cinc2021", "eval_ludb": "ludb"}


def script_of(command: str) -> str:
    return Path(command.split()[0]).stem


def in_order() -> list[str]:
    """Return the commands in the order of the work; the quick tier's are the first of a script."""
    ordered = sorted(COMMANDS, key=lambda line: (ORDER.index(script_of(line)), line))
    if os.environ.get("ECG_TEST_TIER") == "all":
        return ordered
    return [line for line in ordered if line in QUICK]


QUICK = {
    "scripts/simulate.py out=data/archive num_patients=300",
    "scripts/prepare.py source=heedb source.root=data/archive shards=data/shards/heedb",
    "scripts/verify.py shards=data/shards/heedb audit=true",
    "scripts/pretrain.py shards=data/shards/heedb run=first model=net1d_1m trainer=cpu",
    "scripts/doctor.py shards=data/shards/heedb model=net1d_31m trainer=gpu",
    "scripts/runs.py",
    "scripts/evaluate.py run=first checkpoint=best",
    "scripts/export.py run=first format=safetensors",
    "scripts/predict.py run=first checkpoint=best input=data/mine output=predictions.csv",
    "scripts/finetune.py task=table task.table=data/lvef/table.csv task.targets=[low_ef] "
    "from_run=first checkpoint=best mode=linear_probe run=low_ef",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("docs")
    create(root)
    yield root
    shutil.rmtree(root, ignore_errors=True)


def run(words: list[str], script: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a script of the repository in this process; return its exit status."""
    monkeypatch.setattr(sys, "argv", [f"scripts/{script}.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
    return int(ended.value.code or 0)


def test_quick_commands_are_of_the_docs() -> None:
    assert set(COMMANDS) >= QUICK


@pytest.mark.parametrize("command", in_order())
def test_command_of_the_docs_runs(
    command: str,
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    words = arguments(command)
    line = " ".join([command.split()[0], *words]) + " "
    if reason := next((why for mark, why in SKIPPED.items() if mark in line), None):
        pytest.skip(reason)
    for mark, folder in REAL.items():
        if mark in line:
            target = workspace / "data" / folder
            if not target.exists():
                target.symlink_to(request.getfixturevalue("real_data") / folder)
    monkeypatch.chdir(workspace)
    status = run(words, script_of(command), monkeypatch)
    assert status == 0, capfd.readouterr()


@pytest.mark.parametrize(("page", "code"), PYTHON_BLOCKS, ids=[page for page, _ in PYTHON_BLOCKS])
def test_python_block_of_the_docs_runs(
    page: str, code: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    for name in ("a.dcm", "b.xml"):  # stand for files of the reader's own
        code = code.replace(f'"{name}"', f'"data/mine/r{len(name) % 3}"')
    names: dict[str, object] = {}
    exec(compile(code, page, "exec"), names)
    assert names

"""The built wheel: configs inside, the `ecgfounder` command from simulate to predict."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
INSTALLED = (
    "simulate out=archive num_patients=60 seed=1",
    "prepare source=heedb source.root=archive shards=shards signal.fs=100 split.test_fraction=0.2 "
    "split.val_fraction=0.2",
    "pretrain shards=shards run=first model=net1d_500k trainer=cpu data.global_batch_size=32 "
    "budget.max_epochs=1",
    "evaluate run=first device=cpu mistakes=0",
    "predict run=first checkpoint=best input=archive/ECG/I0006 output=predictions.csv device=cpu",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built from a copy of what git tracks."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("ecgfounder_train", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(REPOSITORY / name, source)
    # A backend newer than this environment's is needed only where it is too old for the licence.
    code = "from setuptools.build_meta import build_wheel; import sys; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"this environment's setuptools cannot build: {done.stderr.splitlines()[-1:]}")
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_has_every_config_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert "ecgfounder = ecgfounder_train.app:main" in archive.read(entry).decode()
    inside = {n.removeprefix("ecgfounder_train/") for n in names if "/configs/" in n}
    tracked = {p.relative_to(REPOSITORY) for p in (REPOSITORY / "configs").rglob("*.yaml")}
    assert inside == {str(path) for path in tracked if path.parts[1] not in ("local", "local.yaml")}
    assert "ecgfounder_train/labels/data/ecgfounder150.csv" in names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


@pytest.mark.slow
def test_installed_command_runs_from_simulate_to_predict(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = tmp_path / "env" / "bin" / "python"
    libraries = next((tmp_path / "env" / "lib").glob("python*")) / "site-packages"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"OMP_NUM_THREADS": "1"}
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, env=env)
    # The libraries of this environment, without its own install of the project.
    (libraries / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    work = tmp_path / "work"
    work.mkdir()
    command = str(tmp_path / "env" / "bin" / "ecgfounder")
    for line in INSTALLED:
        done = subprocess.run(
            [command, *line.split()], cwd=work, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "scripts/" not in done.stdout + done.stderr
    assert (work / "predictions.csv").is_file()
    shown = subprocess.run([command, "pretrain", "--help"], cwd=work, env=env, capture_output=True)
    assert b"ecgfounder pretrain shards=DIR" in shown.stdout

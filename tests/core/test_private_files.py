"""Private folders and files belong to their owner alone, whoever makes them and under any umask."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.private_files import open_private_folder
from ecgfounder_train.core.pseudonyms import load_or_create_secret


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    former = os.umask(request.param)
    yield request.param
    os.umask(former)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_private_folder_has_its_modes_under_any_umask(tmp_path: Path, umask: int) -> None:
    folder = open_private_folder(tmp_path / "shards.private")
    with atomic_file(folder / "catalog.parquet") as handle:
        assert mode(Path(handle.name)) == 0o600, "not even before it is whole"
    secret = load_or_create_secret(folder / "secret.key")
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert load_or_create_secret(folder / "secret.key") == secret


def test_secret_makes_the_private_folder_private(tmp_path: Path, umask: int) -> None:
    if umask == 0o777:
        pytest.skip("the folders above cannot be entered")
    load_or_create_secret(tmp_path / "runs" / "a" / "evaluation.private" / "secret.key")
    assert mode(tmp_path / "runs" / "a" / "evaluation.private") == 0o700


def test_wider_permissions_are_removed_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "shards.private"
    (folder / "units").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere.txt"
    for path in (folder / "rejects.csv", folder / "units" / "a.json", elsewhere):
        path.write_text("x")
        path.chmod(0o664)
    (folder / "link").symlink_to(elsewhere)
    (folder / "units").chmod(0o777)
    folder.chmod(0o755)
    open_private_folder(folder)
    assert mode(folder) == mode(folder / "units") == 0o700
    assert mode(folder / "rejects.csv") == mode(folder / "units" / "a.json") == 0o600
    assert mode(elsewhere) == 0o664, "a link's target is not the folder's"
    assert "others could read 4 files or folders" in capsys.readouterr().err
    open_private_folder(folder)
    assert not capsys.readouterr().err, "once"


@pytest.mark.parametrize("place", [".", "~", "/"])
def test_folder_that_holds_more_is_refused(place: str) -> None:
    with pytest.raises(UserError, match="cannot be a private folder"):
        open_private_folder(Path(place).expanduser())


def test_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot make or protect the private folder"):
        open_private_folder(tmp_path / "file" / "private")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_another_user_cannot_read_what_is_private(tmp_path: Path) -> None:
    folder = open_private_folder(tmp_path / "shards.private")
    with atomic_file(folder / "rejects.csv", "w") as handle:
        handle.write("900000001")
    for path in (tmp_path, *tmp_path.parents):
        if path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055) if path.is_relative_to("/tmp") else None
    read = f"import os; os.setuid(65534); print(open({str(folder / 'rejects.csv')!r}).read())"
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True)
    assert done.returncode != 0
    assert "900000001" not in done.stdout
    assert "PermissionError" in done.stderr

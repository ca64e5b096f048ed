"""Files of an archive: a local folder and a URL give the same answers."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.records.storage import (
    fetch_tables,
    is_remote,
    join,
    list_files,
    local_copy,
    open_bytes,
)

FILES = {
    "ECG/I0001/metadata/metadata.csv": b"a,b\n1,2\n",
    "ECG/I0001/WFDB/S0001/1990/01/r2.hea": b"r2 12 500 10\n",
    "ECG/I0001/WFDB/S0001/1990/01/r1.hea": b"r1 12 500 10\n",
    "ECG/I0001/WFDB/S0001/1990/01/r1.mat": b"\0" * 10,
    "top.hea": b"x",
}


@pytest.fixture(params=["local", "memory", "file"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    if request.param == "memory":
        system = fsspec.filesystem("memory")
        for name, content in FILES.items():
            system.pipe_file(f"/archive/{name}", content)
        yield "memory://archive"
        system.rm("/archive", recursive=True)
        return
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    yield tmp_path if request.param == "local" else f"file://{tmp_path}"


def test_listing_is_sorted_relative_and_by_ending(root: Path | str) -> None:
    assert list(list_files(root, [".hea"])) == [
        "top.hea",
        "ECG/I0001/WFDB/S0001/1990/01/r1.hea",
        "ECG/I0001/WFDB/S0001/1990/01/r2.hea",
    ]
    assert set(list_files(root)) == set(FILES)


def test_files_are_read_whole_or_up_to_a_limit(root: Path | str) -> None:
    path = join(root, "ECG/I0001/metadata/metadata.csv")
    assert open_bytes(path) == FILES["ECG/I0001/metadata/metadata.csv"]
    assert open_bytes(path, limit=3) == b"a,b"
    with pytest.raises(FileNotFoundError):
        open_bytes(join(root, "absent"))


def test_tables_of_a_remote_archive_are_copied_and_signals_are_not(root: Path | str) -> None:
    if not is_remote(root):
        assert not is_remote(str(root))
        return
    folder = fetch_tables(str(root), ["*/metadata/*.csv", "ECG/*/metadata/*.csv"])
    copied = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert [str(path.relative_to(folder)) for path in copied] == ["ECG/I0001/metadata/metadata.csv"]
    assert copied[0].read_bytes() == FILES["ECG/I0001/metadata/metadata.csv"]
    copy = local_copy(root, "top.hea")
    assert copy.read_bytes() == b"x"
    assert not local_copy(root, "absent.csv").exists()


def test_unknown_protocols_and_places_are_users_mistakes() -> None:
    with pytest.raises(UserError, match="xyz://"):
        open_bytes("xyz://bucket/file")
    with pytest.raises(UserError, match=r"cannot be read.*source\.storage_options"):
        fetch_tables("file:///no/such/folder", ["*.csv"])

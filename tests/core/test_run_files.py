"""A run's config.yaml and run.json are read whole, or named with what is wrong."""

from pathlib import Path

import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory

LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefghij", "bcdefghijk", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"shards: [1, 2\n",
        b"\x00\xff\x13\x37" * 100,
        b"- a\n- b\n",
        b"just text",
        b"shards: 12\ndata: {}\n",
        b"shards: set\ndata: 7\n",
        b"shards: set\n",
        b"12: set\nshards: set\ndata: {}\n",
        b"shards: !!python/object/apply:os.system [id]\ndata: {}\n",
        LAUGHS.encode() + b"shards: set\ndata: {}\n",
        b"[" * 100_000,
    ],
)
def test_damaged_config_is_named(tmp_path: Path, content: bytes) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_bytes(content)
    with pytest.raises(UserError, match=r"config\.yaml is damaged \(.+Restore it from a backup"):
        run.read_config(required=("shards", "data"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"spec": {}}', b"[" * 100_000]
)
def test_damaged_state_is_named(tmp_path: Path, content: bytes) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.state_file.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        run.read_state()


def test_whole_files_come_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    run.config_file.write_text(
        "# python scripts/pretrain.py\nshards: '2026'\ndata: {cache: null}\n"
    )
    run.write_state({"state": "finished"})
    assert run.read_config(required=("shards", "data"))["shards"] == "2026"
    assert run.read_state() == {"state": "finished"}
    (run.path / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        run.read_state()

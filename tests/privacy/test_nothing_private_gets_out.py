"""Every verb on an archive whose ids and dates are known: outside the private folder none is found.

The archive has records that fail in every verb that reads recordings. Names and bytes of every file
are searched, what was printed too, and the modes of the private folder are checked.
"""

import csv
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tiny_set as tiny
import wfdb

from ecgfounder_train.core.private_files import PRIVATE_SUFFIX, private_folder
from ecgfounder_train.records import STANDARD_LEADS

NUM_RECORDS = 80
FIRST_ID = 900_000_001
DATES = ("20190317", "2019-03-17", "17/03/2019", "17-Mar-2019")
AGE = 71.53
_LOCAL = re.compile(r"\.local\.html$|failure\.json$|config\.yaml$")
"""Files that state to stay on this machine: they may hold paths, but no id."""


@dataclass
class Scene:
    """Where an archive and everything made from it is."""

    base: Path
    printed: dict[str, str] = field(default_factory=dict)

    @property
    def archive(self) -> Path:
        return self.base / "archive"

    @property
    def shards(self) -> Path:
        return self.base / "out" / "shards"

    def run(self, verb: str, *words: str) -> None:
        script, *leading = verb.split()
        places = []
        if script in ("pretrain", "evaluate", "export", "finetune", "ablate", "runs"):
            places.append(f"paths.runs={self.base / 'out/runs'}")
        if script == "ablate":
            places.append(f"paths.ablations={self.base / 'out/ablations'}")
        command = [sys.executable, str(tiny.REPOSITORY / "scripts" / f"{script}.py"), *leading]
        done = subprocess.run(
            [*command, *places, *words], capture_output=True, text=True, cwd=self.base / "work"
        )
        self.printed[f"{verb} {words[0]}"] = done.stdout + done.stderr
        assert done.returncode == 0, f"{verb}: {done.stderr[-2000:]}"


def _write_archive(root: Path) -> None:
    """Write records, three of them damaged, and a table that names ids, dates and ages."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(NUM_RECORDS):
        patient = FIRST_ID + number // 2
        stem = f"de_{patient}_{DATES[0]}_{number}"
        values = rng.integers(0, 2, 2)
        time = np.arange(1000) / 100
        signal = rng.normal(0, 0.2, (12, 1000)) + values[0] * np.sin(2 * np.pi * 3 * time)
        signal[:, -1] += values[1]
        wfdb.wrsamp(
            stem, fs=100, units=["mV"] * 12, sig_name=list(STANDARD_LEADS), p_signal=signal.T,
            fmt=["16"] * 12, write_dir=str(root),
            comments=[f"Patient: {patient}", f"Recorded: {DATES[3]}"],
        )  # fmt: skip
        codes = ";".join(code for code, value in zip(("A", "B"), values, strict=True) if value)
        rows.append((stem, str(patient), codes or "C", str(AGE), str(values[0])))
    for row, damage in zip(rows[:3], ("", "garbage 900000001 2019-03-17\n", None), strict=True):
        header = root / f"{row[0]}.hea"
        if damage is None:
            (root / f"{row[0]}.dat").unlink()
        else:
            header.write_text(damage)
    with open(root / "table.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["record", "patient", "codes", "age", "answer"])
        writer.writerows(rows)
    vocabulary = "label,codes\nfirst,A\nsecond,B\nthird,C\n"
    (root.parent / "vocabulary.csv").write_text(vocabulary)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = Scene(tmp_path_factory.mktemp("scene"))
    _write_archive(scene.archive)
    (scene.base / "work").mkdir()
    fast = [*tiny.TINY_MODEL[1:], "trainer=cpu", "data.global_batch_size=16"]
    source = [
        *("source=wfdb_folder", f"source.root={scene.archive}", "source.table=table.csv"),
        *("source.patient_column=patient", "source.statement_columns=[codes]"),
        *("source.statement_separator=';'", "source.age_column=age"),
    ]
    labels = f"labels.name={scene.base / 'vocabulary.csv'}"
    scene.run(
        "prepare", *source, labels, "signal.fs=100", f"shards={scene.shards}",
        "build.records_per_shard=10", "build.max_reject_share=1", "executor=inline",
    )  # fmt: skip
    scene.run("verify", f"shards={scene.shards}")
    scene.run(
        "pretrain", f"shards={scene.shards}", "run=first", "model=net1d_1m", *fast,
        "budget.max_epochs=1", "logger=tensorboard",
    )  # fmt: skip
    scene.run("evaluate", "run=first", f"shards={scene.shards}")
    scene.run("export", "run=first", f"out={scene.base / 'out/export'}", "licence=MIT")
    scene.run(
        "finetune",
        *("task=table", f"task.table={scene.archive / 'table.csv'}", "task.kind=binary"),
        *("task.targets=[answer]", "from_run=first", "checkpoint=best", "run=tuned"),
        *("mode=linear_probe", "trainer=cpu", f"cache={scene.base / 'out/cache'}"),
    )
    scene.run(
        "ablate run", "ablation=loss", "ablation.axes.seed=[0]", "ablation.budget.samples=32",
        "ablation.overrides=[" + ",".join(f'"{word}"' for word in fast) + "]",
        f"shards={scene.shards}",
    )  # fmt: skip
    scene.run("runs", "format=table")
    return scene


def _outside(scene: Scene) -> Iterator[Path]:
    for path in (scene.base / "out").rglob("*"):
        if not any(part.endswith(PRIVATE_SUFFIX) for part in path.parts):
            yield path


@pytest.mark.slow
def test_no_id_date_or_path_is_outside_the_private_folder(scene: Scene) -> None:
    ids = [str(FIRST_ID + number) for number in range(NUM_RECORDS // 2)]
    secret = re.compile("|".join([*ids, *DATES]).encode())
    paths = re.compile(re.escape(str(scene.archive)).encode())
    host = socket.gethostname()
    searched = 0
    for path in _outside(scene):
        assert not secret.search(path.name.encode()), path
        assert host not in path.name.split("."), path
        if not path.is_file():
            continue
        searched += 1
        content = path.read_bytes()
        assert not secret.search(content), path
        assert _LOCAL.search(path.name) or not paths.search(content), path
    assert searched > 40
    for command, text in scene.printed.items():
        assert not secret.search(text.encode()), command


@pytest.mark.slow
def test_ages_are_whole_years(scene: Scene) -> None:
    for path in _outside(scene):
        if path.is_file():
            assert b"71.53" not in path.read_bytes(), path
            if path.suffix == ".parquet" and "age_years" in pl.read_parquet_schema(path):
                ages = pl.read_parquet(path)["age_years"].drop_nulls()
                assert (ages == ages.floor()).all(), path


@pytest.mark.slow
def test_failing_records_are_in_the_private_ledger(scene: Scene) -> None:
    with open(private_folder(scene.shards) / "rejects.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 3
    assert all(DATES[0] in row["record_path"] for row in rows)


@pytest.mark.slow
def test_private_folders_belong_to_their_owner(scene: Scene) -> None:
    folders = [path for path in (scene.base / "out").rglob("*.private") if path.is_dir()]
    assert private_folder(scene.shards) in folders
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path

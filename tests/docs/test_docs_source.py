"""The source that docs/data/your_own.md shows prepares a folder, in twenty lines."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import wfdb
from pages import FILES, ROOT

from ecgfounder_train.records import STANDARD_LEADS
from ecgfounder_train.shards import read_manifest


def test_the_source_of_the_docs_has_twenty_lines_and_works(tmp_path: Path) -> None:
    files = {name: text for name, text in FILES.items() if "/my_source." in name}
    assert [Path(name).name for name in files] == ["my_source.py", "my_source.yaml"]
    lines = [line for text in files.values() for line in text.splitlines() if line.strip()]
    assert len(lines) <= 20, "the config included, blank lines not"

    for part in ("ecgfounder_train", "configs", "scripts"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text)

    data = tmp_path / "mine"
    data.mkdir()
    for number in range(6):
        wfdb.wrsamp(
            f"r{number}",
            fs=100,
            units=["mV"] * 12,
            sig_name=list(STANDARD_LEADS),
            p_signal=np.random.default_rng(number).normal(0, 0.3, (1000, 12)),
            fmt=["16"] * 12,
            write_dir=str(data),
        )
    (data / "labels.csv").write_text(
        "file,patient,codes\nr0,1.0,AF;RBBB\nr1,2.0,\nr2,3.0,AF\nr3,,AF\nr4,5,none\nr5,6,RBBB\n"
    )
    (data / "my_labels.csv").write_text("label,codes\nfibrillation,AF\nblock,RBBB|LBBB\n")
    command = [
        *(sys.executable, "scripts/prepare.py", "source=my_source", f"source.root={data}"),
        *(f"labels.name={data / 'my_labels.csv'}", f"shards={tmp_path / 'shards'}"),
        *("signal=zscore", "signal.fs=100", "executor=inline", "report.strips=0"),
        *("split.test_fraction=0", "split.val_fraction=0"),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},  # the copy, not what is installed
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = read_manifest(tmp_path / "shards")
    assert manifest.source == "my_source"
    assert manifest.labels == ("fibrillation", "block")
    totals = manifest.totals
    # r1 was read by nobody, r3 has no patient; "none" stands for nothing as well.
    assert (totals.found, totals.written, totals.unlabelled) == (6, 3, 2)
    assert totals.rejected == {"blank_patient_id": 1}
    catalog = pl.read_parquet(tmp_path / "shards.private" / "catalog.parquet")
    assert catalog["record_path"].to_list() == [f"r{number}" for number in range(6)]

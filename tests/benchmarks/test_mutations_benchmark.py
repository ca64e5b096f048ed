"""Damaged files of every format end no batch, take no memory and no time."""

import random
import sys
from pathlib import Path

import pytest

from ecgfounder_train.benchmarks import run_benchmark
from ecgfounder_train.benchmarks.mutations import mutate
from ecgfounder_train.core.errors import UserError

INFERENCE = Path(__file__).resolve().parents[1] / "inference"


def test_no_mutant_of_any_format_ends_a_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(INFERENCE))
    import input_files as files

    ecg = files.heartbeat()
    files.write_dicom(tmp_path / "waveform.dcm", ecg)
    files.write_aecg(tmp_path / "annotated.xml", ecg)
    files.write_muse(tmp_path / "muse.xml", ecg)
    files.write_scp(tmp_path / "exchange.scp", ecg, compressed=True)
    sys.modules.pop("input_files", None)
    outcome = run_benchmark("mutations", "small", {"files": str(tmp_path)})
    record = outcome.record
    assert record["not_survived"] == 0, outcome.table
    assert record["ratio"] == 1
    assert record["mutants"] == 20 * len(record["by_file"]) == record["read"] + record["refused"]
    assert {"waveform.dcm", "exchange.scp", "packed.h5", "config.yaml"} <= set(record["by_file"])


def test_mutation_changes_a_file_and_can_be_made_again() -> None:
    whole = bytes(range(256)) * 20
    made = [mutate(whole, random.Random(seed)) for seed in range(50)]
    assert made == [mutate(whole, random.Random(seed)) for seed in range(50)]
    assert sum(mutant != whole for mutant in made) > 45
    assert mutate(b"", random.Random(0)) is not None


def test_missing_folder_is_named() -> None:
    with pytest.raises(UserError, match=r"mutations\.files=nowhere is not a folder"):
        run_benchmark("mutations", "small", {"files": "nowhere"})

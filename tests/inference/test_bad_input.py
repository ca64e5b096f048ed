"""A folder of all that goes wrong: the batch goes on, each thing is named, the sum adds up."""

from pathlib import Path
from typing import Any

import input_files as files
import numpy as np
import polars as pl
import wfdb

from ecgfounder_train.app import compose_config
from ecgfounder_train.inference.command import predict_files
from ecgfounder_train.records import STANDARD_LEADS

RNG = np.random.default_rng(8)


def heart() -> np.ndarray:
    """Return ten seconds of twelve leads that fit together, in mV at 500 Hz."""
    one, two = files.heartbeat()[:2] + RNG.normal(0, 0.01, (2, 5000))
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    chest = files.heartbeat()[6:] + RNG.normal(0, 0.01, (6, 5000))
    return np.concatenate([np.stack(limbs), chest])


def test_a_folder_of_bad_input_is_predicted_to_its_end(official_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()

    def store(name: str, signal: np.ndarray, fs: float = 500, leads=STANDARD_LEADS) -> None:
        wfdb.wrsamp(
            name, fs=fs, units=["mV"] * len(leads), sig_name=list(leads), p_signal=signal.T,
            fmt=["16"] * len(leads), write_dir=str(folder),
        )  # fmt: skip

    def row(name: str) -> dict[str, Any]:
        return frame.filter(pl.col("record").str.contains(f"/{name}")).row(0, named=True)

    store("good", heart())
    store("slow", heart()[:, ::10], fs=50)
    store("microvolts", 1000 * heart())
    loose = heart()
    loose[STANDARD_LEADS.index("V3")] = 0.0
    store("loose", loose)
    cut = heart()
    cut[STANDARD_LEADS.index("V4")] = np.minimum(cut[STANDARD_LEADS.index("V4")], 0.6)
    store("clipped", cut)
    store("two_leads", heart()[6:8], leads=("V1", "V2"))
    swapped = heart()
    swapped[[1, 2]] = swapped[[2, 1]]
    store("swapped", swapped)
    store(
        "spelled", heart(), leads=tuple(f"MDC_ECG_LEAD_{name.upper()}" for name in STANDARD_LEADS)
    )
    store("broken", heart())
    broken = folder / "broken.dat"
    broken.write_bytes(broken.read_bytes()[:999])
    (folder / "no_dicom.dcm").write_bytes(b"this is not an ECG" * 40)
    (folder / "letter.pdf").write_bytes(b"%PDF-1.4")

    output = tmp_path / "table.csv"
    words = (f"checkpoint={official_file}", f"input={folder}", f"output={output}")
    config = compose_config("predict", list(words))
    plain = {str(key): config[key] for key in config if key not in ("paths", "run", "checkpoint")}
    found, total, *_ = predict_files(plain, official_file, str(plain.pop("device")))
    frame = pl.read_csv(output)
    expected = {
        "good": ("ok", ""),
        "slow": ("ok", "low_sampling_rate"),
        "clipped": ("ok", "clipped"),
        "swapped": ("ok", "limb_leads_inconsistent"),
        "spelled": ("ok", "leads_renamed"),
        "microvolts": ("amplitude_beyond_limit", "unit_suspect"),
        "loose": ("constant_lead", "flat_lead"),
        "two_leads": ("missing_leads", ""),
        "broken": ("truncated_signal", ""),
        "no_dicom": ("unreadable_signal", ""),
    }
    seen = {name: (row(name)["status"], row(name)["warnings"] or "") for name in expected}
    assert seen == expected and frame.height == len(expected)
    for name, (status, warnings) in expected.items():
        assert bool(row(name)["detail"]) == (status != "ok" or bool(warnings)), name
        assert (row(name)["ATRIAL FIBRILLATION"] is None) == (status != "ok"), name
    assert "input_unit=uV" in row("microvolts")["detail"]
    assert "II and III changed names" in row("swapped")["detail"]
    assert "10 records found = 5 predicted + 5 rejected (1 amplitude_beyond_limit" in total
    assert "1 other files were not read: 1 of type .pdf (letter.pdf)" in found

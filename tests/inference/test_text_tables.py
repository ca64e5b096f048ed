"""Exports of devices, spreadsheets and web sites: rate, unit and leads as they state them."""

from pathlib import Path

import input_files as files
import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError
from ecgfounder_train.inference import InputOptions, find_records, read_file

ECG = files.heartbeat()[:2]
UV = np.rint(ECG * 1000).astype(int)


def table(head: str, rows: list[str]) -> str:
    return "\n".join([head, *rows]) + "\n"


def pair(separator: str = ",", unit: int = 1) -> list[str]:
    return [separator.join(f"{v * unit:.3f}" for v in row) for row in ECG.T]


def read(tmp_path: Path, text: str, options: InputOptions | None = None, encoding: str = "utf-8"):
    path = tmp_path / "export.csv"
    path.write_bytes(text.encode(encoding))
    return find_records(str(path), options).records[0].read()


TIMED = [f"{n * 2},{row}" for n, row in enumerate(pair())]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (table("time (ms),I (mV),II (mV)", TIMED), "utf-8"),
        (table("time_ms,I,II\nms,mV,mV", TIMED)[8:].replace("I,II", "time,I,II", 1), "utf-8"),
        (table("# fs: 500\n# unit: mV\nI;II", [r.replace(",", ";") for r in pair()]), "utf-8"),
        (table("Abtastrate;500 Hertz\nEinheit;mV\n\nI;II", pair(";")).replace(".", ","), "latin-1"),
        (table("I [microvolts],II [\u00b5V]", [f"{a},{b}" for a, b in UV.T]).replace(
            "I [", "fs,I [", 1).replace("\n", "\n500,")[:-4], "latin-1"),
        (table("Fs=500\nResolution: 1 uV/bit\nI\tII", [f"{a}\t{b}" for a, b in UV.T]), "utf-16"),
        (table("Sample rate 500\rGain: 1000 adu/mV".replace(" 500", ": 500") + "\rI,II",
               [f"{a},{b}" for a, b in UV.T]).replace("\n", "\r"), "utf-8"),
        (table("timestamp,I,II\ns,mV,mV", [f"{1.7e9 + n / 500:.3f},{r}"
                                           for n, r in enumerate(pair())]), "utf-8"),
        (table("timestamp_ns,I,II", [f"{n * 2_000_000},{r}" for n, r in enumerate(pair())])
         .replace("I,II", "I (mV),II (mV)"), "utf-8"),
        (table("'Elapsed time','I','II'\n'hh:mm:ss.mmm','mV','mV'",
               [f"'0:{n // 30000:02d}:{n / 500 % 60:06.3f}',{r}" for n, r in enumerate(pair())]),
         "utf-8"),
        (table("when time,I (mV),II (mV),note",
               [f"2024-03-26T17:30:{n / 500:06.3f}Z,{r},ok" for n, r in enumerate(pair())]),
         "utf-8"),
    ],
)  # fmt: skip
def test_exports_are_read_with_what_they_state(tmp_path: Path, text: str, encoding: str) -> None:
    source = read(tmp_path, text, encoding=encoding)
    assert source.record.fs == 500 and source.record.lead_names == ("I", "II")
    np.testing.assert_allclose(source.record.signal, ECG, atol=6e-4)
    assert not {r.code.value for r in source.remarks} & {"unit_assumed", "rate_conflict"}


def test_a_watch_export_of_one_lead_is_read_in_any_language(tmp_path: Path) -> None:
    preamble = (
        "Nom,X\nFr\u00e9quence d'\u00e9chantillonnage,512 hertz\n\n"
        "D\u00e9rivation,D\u00e9rivation I\nUnit\u00e9,\u00b5V\n\n"
    )
    values = [f"{value},{number % 10}" for number, value in enumerate(UV[0])]
    source = read(tmp_path, preamble + "\n".join(values))
    assert source.record.fs == 512 and source.record.lead_names == ("I",)
    assert source.record.signal.shape == (1, 5000)
    np.testing.assert_allclose(source.record.signal[0], ECG[0], atol=1e-3)


@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("first", [0, 1])
def test_numbers_as_a_head_are_not_a_sample(tmp_path: Path, index: bool, first: int) -> None:
    ecg = files.heartbeat()
    head = ",".join(str(n) for n in range(first, first + 12))
    rows = [",".join(f"{v:.3f}" for v in row) for row in ecg.T]
    if index:
        head, rows = "," + head, [f"{n},{row}" for n, row in enumerate(rows)]
    source = read(tmp_path, table(head, rows), InputOptions(fs=500, unit="mV"))
    np.testing.assert_allclose(source.record.signal, ecg, atol=6e-4)
    assert source.record.lead_names == files.LEADS


def test_what_the_user_states_outranks_a_guess_about_the_time_column(tmp_path: Path) -> None:
    counted = table("time,I (mV),II (mV)", [f"{n},{r}" for n, r in enumerate(pair())])
    with pytest.raises(RejectedRecordError, match="samples or milliseconds; give input_fs"):
        read(tmp_path, counted)
    source = read(tmp_path, counted, InputOptions(fs=500))
    assert source.record.fs == 500 and not source.remarks
    unlike = table("time,I (mV),II (mV)", [f"{n * 3},{r}" for n, r in enumerate(pair())])
    source = read(tmp_path, unlike, InputOptions(fs=500))
    assert source.record.fs == 500
    assert [r.code.value for r in source.remarks] == ["rate_conflict"]
    stated = read(tmp_path, unlike.replace("time", "time_ms"), InputOptions(fs=500))
    assert stated.record.fs == pytest.approx(1000 / 3, abs=0.01)


def test_a_unit_that_is_not_a_voltage_is_quoted(tmp_path: Path) -> None:
    text = table("I [adu],II [adu]", [f"{a},{b}" for a, b in UV.T])
    with pytest.raises(RejectedRecordError, match="unknown_units: unit 'adu' of lead I"):
        read(tmp_path, text, InputOptions(fs=500))
    source = read(tmp_path, text, InputOptions(fs=500, unit="uV"))
    np.testing.assert_allclose(source.record.signal, ECG, atol=6e-4)


def test_a_wide_or_huge_table_takes_no_memory(tmp_path: Path) -> None:
    wide = tmp_path / "wide.csv"
    wide.write_text("\n".join(",".join(["1"] * 200_000) for _ in range(2)))
    with pytest.raises(RejectedRecordError, match="2 leads without names"):
        read_file(wide, options=InputOptions(fs=500, unit="mV"))
    sparse = tmp_path / "sparse.csv"
    with sparse.open("wb") as handle:
        handle.write(b"1,2\n" * 50_000)
        handle.truncate(6_000_000_000)
    with pytest.raises(RejectedRecordError, match="more than is read at once"):
        read_file(sparse, options=InputOptions(fs=500, unit="mV"))


def test_every_file_of_a_folder_is_counted_and_named(tmp_path: Path) -> None:
    (tmp_path / "ecg.csv").write_text(table("I (mV),II (mV)", pair()))
    (tmp_path / "labels.csv").write_text("name,diagnosis\na,normal\n")
    (tmp_path / "letter.pdf").write_bytes(b"%PDF")
    (tmp_path / "list.csv").write_text("path,fs\na.npy,500\nb.npy,500\n")
    (tmp_path / "gone.csv").symlink_to(tmp_path / "nowhere")
    found = find_records(str(tmp_path))
    assert len(found) == 1 and found.num_left_out == 4
    assert {(Path(name).name, reason) for name, reason in found.not_read} == {
        ("labels.csv", "text without samples"),
        ("letter.pdf", "of type .pdf"),
        ("list.csv", "list of files"),
        ("gone.csv", "a broken link"),
    }

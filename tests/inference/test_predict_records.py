"""Predictions of recordings equal a forward pass by hand, and account for every recording."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import input_files as files
import numpy as np
import polars as pl
import polars.testing
import pyarrow.parquet as pq
import pytest
import tiny_set as tiny
import torch

import ecgfounder_train
from ecgfounder_train.app import compose_config
from ecgfounder_train.core.csv_files import unescape_formula
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.inference import EcgModel, OutputTable, PipelineSettings, load_model
from ecgfounder_train.inference.command import (
    METADATA_KEY,
    description_file,
    predict_files,
    read_metadata,
)
from ecgfounder_train.records import EcgRecord, normalise, read_record
from ecgfounder_train.weights.outputs import Output
from ecgfounder_train.weights.trained_model import TrainedModel

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> EcgModel:
    return load_model(checkpoint, "cpu")


def run_command(checkpoint: Path, *words: str) -> list[str]:
    config: Any = compose_config("predict", [f"checkpoint={checkpoint}", *words])
    plain = {str(key): config[key] for key in config if key not in ("paths", "run", "checkpoint")}
    return predict_files(plain, checkpoint, str(plain.pop("device")))


def by_hand(trained: TrainedModel, path: Path) -> np.ndarray:
    (window,) = trained.profile.apply(read_record(path)).windows
    signal = normalise(
        window.ecg,
        window.stats,
        window.valid_start,
        window.valid_num_samples,
        trained.profile.load_normalisation,
    )
    with torch.inference_mode():
        logits: np.ndarray = trained.model(torch.from_numpy(signal)[None])[0].numpy()
    return logits


def test_prediction_of_a_record_equals_that_of_its_shard(model: EcgModel, tiny_set: Any) -> None:
    # Numbers ending in 1 last 20 s: two windows.
    catalog = tiny_set.catalog
    paths = [tiny_set.root / path for path in catalog["record_path"]]
    predicted = model.predict(paths, settings=PipelineSettings(batch_size=8))
    assert predicted.rejected == []
    assert sorted(set(predicted.num_windows)) == [1, 2]
    splits = ("train", "val", "test")
    every = [predict_split(model.trained, tiny_set.shards, split, CPU, 16) for split in splits]
    keys = np.concatenate([one.record_key for one in every])
    logits = np.concatenate([one.logits for one in every])
    for number, key in enumerate(catalog["record_key"]):
        expected = logits[keys == key]
        assert len(expected) == predicted.num_windows[number]
        np.testing.assert_allclose(predicted.logits[number], expected.mean(0), atol=1e-4)
    most = PipelineSettings(batch_size=5, pool="max")
    largest = model.predict(paths[:12], settings=most)
    for number in (1, 11):
        both = logits[keys == catalog["record_key"][number]]
        np.testing.assert_allclose(largest.logits[number], both.max(0), atol=1e-4)
        assert not np.allclose(largest.logits[number], predicted.logits[number], atol=1e-4)


def test_record_is_predicted_as_by_hand_at_its_own_rate(model: EcgModel, tiny_set: Any) -> None:
    path = tiny_set.root / tiny_set.catalog["record_path"][0]
    (logits,) = model.predict(path).logits
    np.testing.assert_allclose(logits, by_hand(model.trained, path), atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batches_threads_and_order_change_nothing(
    model: EcgModel, tiny_set: Any, batch_size: int
) -> None:
    paths = [tiny_set.root / path for path in tiny_set.catalog["record_path"]][:23]
    alone = model.predict(paths, settings=PipelineSettings(batch_size=7, num_workers=1))
    together = model.predict(
        paths[::-1], settings=PipelineSettings(batch_size=batch_size, num_workers=4)
    )
    assert together.records == alone.records[::-1]
    np.testing.assert_allclose(together.logits[::-1], alone.logits, atol=1e-4)


def test_rejected_records_appear_with_their_reason_and_totals_add_up(
    checkpoint: Path, tiny_set: Any, tmp_path: Path
) -> None:
    for part in ("S0", "S1"):
        shutil.copytree(tiny_set.root / part, tmp_path / "in" / part)
    headers = sorted((tmp_path / "in").rglob("*.hea"))
    headers[0].with_suffix(".dat").unlink()
    signal_file = headers[1].with_suffix(".dat")
    signal_file.write_bytes(signal_file.read_bytes()[:1000])
    headers[2].write_text("no header\n")
    flat = headers[3].with_suffix(".dat")
    flat.write_bytes(bytes(flat.stat().st_size))
    output = tmp_path / "table.csv"
    said = run_command(checkpoint, f"input={tmp_path / 'in'}", f"output={output}")
    assert "100 records found = 96 predicted + 4 rejected (1 all_zero, 1 missing" in said[1]
    assert "Warnings on" in said[1] and "9 padded" in said[1]
    frame = pl.read_csv(output)
    assert frame.height == 100 and frame["record"].is_sorted()
    reasons = ("missing_signal_file", "truncated_signal", "unreadable_header", "all_zero")
    for header, reason in zip(headers[:4], reasons, strict=True):
        row = frame.filter(pl.col("record") == str(header.with_suffix("")))
        assert row["status"].item() == reason and row["detail"].item()
        assert row["NORM"].item() is None and row["yes:NORM"].item() is None
    good = frame.filter(pl.col("status") == "ok")
    values = good.select("NORM", "MI", "STTC", "CD", "HYP").to_numpy()
    assert good.height == 96 and ((values > 0) & (values < 1)).all()


def test_nothing_but_rejects_is_still_a_table(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.hea").write_text("")
    for name in ("table.csv", "table.parquet"):
        said = run_command(checkpoint, f"input={tmp_path / 'in'}", f"output={tmp_path / name}")
        assert "1 records found = 0 predicted + 1 rejected" in said[1]
    assert pl.read_parquet(tmp_path / "table.parquet")["status"].to_list() == ["unreadable_header"]


def test_probabilities_are_calibrated_and_decided_as_fitted(
    checkpoint: Path, model: EcgModel, tiny_set: Any, tmp_path: Path
) -> None:
    folder = tiny_set.root / "S0"
    output = tmp_path / "table.parquet"
    said = run_command(checkpoint, f"input={folder}", f"output={output}", "threshold=f1")
    assert any("calibrated: 5 of 5 (" in line and "others" not in line for line in said)
    frame = pl.read_parquet(output)
    predicted = model.predict(folder, threshold="f1")
    decisions = model.decisions
    assert decisions is not None
    expected = decisions.calibration.apply(predicted.logits)
    np.testing.assert_allclose(frame.select(model.labels).to_numpy(), expected, atol=1e-6)
    limits = np.array(decisions.thresholds["f1"].values)
    yes = frame.select([f"yes:{label}" for label in model.labels]).to_numpy()
    np.testing.assert_array_equal(yes, predicted.logits >= limits)
    first = [label for label, positive in zip(model.labels, yes[0], strict=True) if positive]
    assert set(filter(None, frame["findings"][0].split("; "))) == set(first)
    metadata = read_metadata(output)
    assert json.loads(pq.read_schema(output).metadata[METADATA_KEY]) == metadata
    assert not metadata["calibrated"].startswith("0 of") and metadata["threshold"] == "f1"
    assert [item["name"] for item in metadata["outputs"]] == list(model.labels)
    for item, limit in zip(metadata["outputs"], limits, strict=True):
        assert item["threshold_logit"] == pytest.approx(limit)
        assert item["calibration"] == "platt"
    assert metadata["fingerprints"] == model.trained.fingerprints


def test_a_calibration_for_other_pooling_is_not_applied(
    checkpoint: Path, model: EcgModel, tiny_set: Any, tmp_path: Path
) -> None:
    output = tmp_path / "table.csv"
    said = run_command(checkpoint, f"input={tiny_set.root / 'S0'}", f"output={output}", "pool=max")
    assert any("NOT calibrated" in line and "fitted for pool=mean" in line for line in said)
    frame = pl.read_csv(output)
    assert "findings" not in frame.columns and "yes:NORM" not in frame.columns
    assert read_metadata(output)["calibrated"].startswith("0 of")


def test_logits_and_embeddings_are_written_too(
    checkpoint: Path, model: EcgModel, tiny_set: Any, tmp_path: Path
) -> None:
    folder = tiny_set.root / "S1"
    words = (f"input={folder}", f"output={tmp_path / 'table.parquet'}")
    run_command(checkpoint, *words, "output_kind=logits")
    logits = pl.read_parquet(tmp_path / "table.parquet").select(model.labels).to_numpy()
    np.testing.assert_allclose(logits, model.predict(folder).logits, atol=1e-5)
    run_command(checkpoint, *words, "output_kind=embeddings")
    frame = pl.read_parquet(tmp_path / "table.parquet")
    embedded = model.embed(folder)
    assert embedded.shape == (50, model.trained.model.num_features)
    np.testing.assert_allclose(
        frame.select(pl.selectors.matches(r"^e\d{4}$")).to_numpy(), embedded, atol=1e-5
    )
    head = model.trained.model.forward_head(torch.from_numpy(embedded[:1])).numpy()
    np.testing.assert_allclose(head, logits[:1], atol=1e-4)


def test_python_takes_paths_records_and_arrays(model: EcgModel, tiny_set: Any) -> None:
    path = tiny_set.root / tiny_set.catalog["record_path"][3]
    record = read_record(path)
    expected = model.predict(str(path)).logits[0]
    mixed = model.predict([path, record, record.signal, np.stack([record.signal] * 2)], fs=100)
    np.testing.assert_allclose(mixed.logits, np.stack([expected] * 5), atol=1e-5)
    assert mixed.records[2:] == ["array 2", "array 3::0", "array 3::1"]
    in_uv = model.predict(record.signal.T * 1000, fs=100, unit="uV", leads=record.lead_names)
    np.testing.assert_allclose(in_uv.logits[0], expected, atol=1e-4)
    frame = mixed.to_frame()
    np.testing.assert_allclose(
        frame.select(model.labels).to_numpy(), mixed.probabilities, atol=1e-6
    )
    with pytest.raises(UserError, match=r"does not say its sampling rate; give it with fs="):
        model.predict(record.signal)
    with pytest.raises(UserError, match="Item 0 is a int"):
        model.predict([3])  # type: ignore[list-item]
    before = record.signal.copy()
    model.predict(record.signal, fs=100, unit="uV")
    np.testing.assert_array_equal(record.signal, before)


def test_embedding_of_an_unusable_record_is_nan_and_said(model: EcgModel, tiny_set: Any) -> None:
    path = tiny_set.root / tiny_set.catalog["record_path"][3]
    flat = EcgRecord(np.zeros((12, 1000), np.float32), files.LEADS, 100.0)
    with pytest.warns(UserWarning, match="1 of 2 recordings have no embedding"):
        rows = model.embed([path, flat])
    assert np.isfinite(rows[0]).all() and np.isnan(rows[1]).all()


def test_quantities_come_in_their_own_unit(model: EcgModel, tiny_set: Any) -> None:
    age = Output("age", "regression", "years", 60.0, 15.0)
    outputs = (age, *(Output(label) for label in model.labels[1:]))
    labels = ("age", *model.labels[1:])
    trained = replace(model.trained, labels=labels, outputs=outputs, decisions=None)
    other = EcgModel(trained, CPU)
    long_record = tiny_set.root / tiny_set.catalog["record_path"][1]
    for pool in ("mean", "max"):
        predicted = other.predict(long_record, settings=PipelineSettings(pool=pool))
        plain = model.predict(long_record)
        np.testing.assert_allclose(
            predicted.probabilities[0, 0], 60 + 15 * plain.logits[0, 0], rtol=1e-5
        )
    table = OutputTable(trained)
    assert table.columns[0] == "age (years)"
    assert table.metadata()["outputs"][0]["unit"] == "years"
    assert predicted.to_frame()["age (years)"].item() == pytest.approx(
        predicted.probabilities[0, 0], rel=1e-5
    )


NAMES = ("status", "record", "=cmd|x", "yes:status", "e0001")


@pytest.mark.parametrize("kind", ["probabilities", "logits", "embeddings"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels_may_be_called_like_other_columns_or_like_formulas(
    checkpoint: Path, tiny_set: Any, tmp_path: Path, kind: str, suffix: str
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["spec"]["labels"] = list(NAMES)
    content["spec"]["vocabulary"]["labels"] = list(NAMES)
    torch.save(content, tmp_path / "named.ckpt")
    output = tmp_path / f"table.{suffix}"
    words = (f"input={tiny_set.root}/S0", f"output={output}", f"output_kind={kind}")
    run_command(tmp_path / "named.ckpt", *words)
    frame = pl.read_csv(output) if suffix == "csv" else pl.read_parquet(output)
    assert frame["status"].dtype == pl.String
    stated = read_metadata(output)["outputs"]
    assert [item["name"] for item in stated] == list(NAMES)
    if kind != "embeddings":
        columns = [unescape_formula(name) for name in frame.columns]
        assert {item["column"] for item in stated} <= set(columns)
    assert not [name for name in frame.columns if suffix == "csv" and name[0] in "=+-@"]


def test_full_disk_is_named(
    checkpoint: Path, tiny_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(frame: pl.DataFrame, handle: Any) -> None:
        raise pl.exceptions.ComputeError("No space left on device (os error 28)")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(UserError, match=r"No space left on device\. Nothing half-written"):
        run_command(checkpoint, f"input={tiny_set.root}/S0", f"output={tmp_path / 'table.csv'}")


def test_a_stopped_batch_goes_on_from_its_whole_parts(
    checkpoint: Path, tiny_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ecgfounder_train.inference import find

    words = (f"input={tiny_set.root}", f"output={tmp_path / 'table.csv'}", "part_size=30")
    run_command(checkpoint, *words)
    undisturbed = pl.read_csv(tmp_path / "table.csv")
    reads = []
    original = find.RecordReference.read

    def counted(reference: Any) -> Any:
        reads.append(reference.name)
        if len(reads) > stop_after:
            raise KeyboardInterrupt
        return original(reference)

    monkeypatch.setattr(find.RecordReference, "read", counted)
    stop_after = 95
    (tmp_path / "table.csv").unlink()
    with pytest.raises(KeyboardInterrupt):
        run_command(checkpoint, *words, "batch_size=4")
    assert not (tmp_path / "table.csv").exists()
    parts = sorted((tmp_path / "table.csv.parts").glob("part-*.parquet"))
    assert 1 <= len(parts) < 4
    reads.clear()
    stop_after = 1000
    run_command(checkpoint, *words)
    assert len(reads) == 100 - 30 * len(parts)
    # The first parts were computed in batches of 4: other kernels, other last digits.
    polars.testing.assert_frame_equal(
        pl.read_csv(tmp_path / "table.csv"), undisturbed, abs_tol=1e-5
    )
    assert not (tmp_path / "table.csv.parts").exists()


def test_parts_of_another_setting_are_not_mixed_in(
    checkpoint: Path, tiny_set: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "table.csv.parts"
    folder.mkdir()
    (folder / "key.json").write_text('{"key": "of another model"}')
    (folder / "part-000000.parquet").write_bytes(b"not a table")
    words = (f"input={tiny_set.root / 'S0'}", f"output={tmp_path / 'table.csv'}")
    run_command(checkpoint, *words)
    assert pl.read_csv(tmp_path / "table.csv").height == 50
    folder.mkdir()
    (folder / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="is in the way"):
        run_command(checkpoint, *words)


def test_an_official_file_gives_150_names_in_one_command(
    official_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    ecg = files.heartbeat()
    files.write_scp(folder / "a.scp", ecg)
    files.write_muse(folder / "b.xml", ecg)
    np.save(folder / "c.npy", ecg * 1000)
    np.savez(folder / "d.npz", signal=ecg[:, ::10], fs=50, unit="mV", leads=files.LEADS)
    np.savez(folder / "e.npz", signal=ecg[:3], fs=500, unit="mV", leads=["I", "II", "V1"])
    output = tmp_path / "x.csv"
    words = [f"checkpoint={official_file}", f"input={folder}", f"output={output}", "input_fs=500"]
    script = tiny.REPOSITORY / "scripts" / "predict.py"
    done = subprocess.run(
        [sys.executable, str(script), *words, f"strips={tmp_path / 'strips'}", "device=cpu"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (
        "5 records found = 3 predicted + 2 rejected (1 amplitude_beyond_limit, 1 missing_leads"
        in (done.stdout)
    )
    assert "NOT calibrated" in done.stdout
    frame = pl.read_csv(output)
    names = [item["column"] for item in read_metadata(output)["outputs"]]
    assert (
        len(names) == 150 and names[1] == "NORMAL SINUS RHYTHM" and set(names) <= set(frame.columns)
    )
    by_file = {Path(row["record"]).name: row for row in frame.iter_rows(named=True)}
    assert "leads_derived" in by_file["b.xml"]["warnings"]
    assert "input_unit=uV would make that" in by_file["c.npy"]["detail"]
    assert "low_sampling_rate" in by_file["d.npz"]["warnings"]
    assert "among the 3 stored (I, II, V1)" in by_file["e.npz"]["detail"]
    pages = sorted(path.name for path in (tmp_path / "strips").iterdir())
    assert len(pages) == 6 and pages[-1] == "index.html"
    page = (tmp_path / "strips" / "00002_b.xml.html").read_text()
    assert "Stays on this machine" in page and "leads_derived" in page and "<svg" in page
    rejected = (tmp_path / "strips" / "00005_e.npz.html").read_text()
    assert "missing_leads" in rejected and "<svg" in rejected


def test_patients_of_a_list_stay_in_the_table(
    checkpoint: Path, tiny_set: Any, tmp_path: Path
) -> None:
    rows = [f"{path},p{number}" for number, path in enumerate(tiny_set.catalog["record_path"][:3])]
    listed = tiny_set.root.parent / "list.csv"
    listed.write_text("\n".join(["record_path,patient", *(f"archive/{row}" for row in rows)]))
    run_command(checkpoint, f"input={listed}", f"output={tmp_path / 'table.csv'}")
    frame = pl.read_csv(tmp_path / "table.csv")
    assert frame.columns[:3] == ["record", "patient", "status"]
    assert frame["patient"].to_list() == ["p0", "p1", "p2"]


def test_longer_and_shorter_recordings_are_cut_as_asked(model: EcgModel) -> None:
    long = EcgRecord(np.tile(files.heartbeat(fs=100.0), 3), files.LEADS, 100.0)
    assert model.predict(long).num_windows == [3]
    assert model.with_windows("centre").predict(long).warnings == [("cropped",)]
    short = EcgRecord(files.heartbeat(fs=100.0, duration_s=2.5), files.LEADS, 100.0)
    assert model.predict(short).rejected[0][1] == "too_short"
    assert model.with_windows(min_duration_s=2).predict(short).warnings == [("padded",)]
    with pytest.raises(UserError, match="policy"):
        model.with_windows("sideways")


def test_wrong_requests_are_named(checkpoint: Path, tiny_set: Any, tmp_path: Path) -> None:
    words = (f"input={tiny_set.root}", f"output={tmp_path / 'table.csv'}")
    for wrong, message in {
        "pool=median": "pool='median' is unknown",
        "batch_size=0": "batch_size=0",
        "output_kind=logit": "Did you mean 'logits'",
        "threshold=yuoden": "Did you mean 'youden'",
        "precision=16": "precision='16' is unknown",
        "input_leads=I": "input_leads='I' is not",
        "part_size=0": "part_size=0",
        "output=table.xlsx": "must end in .csv or .parquet",
    }.items():
        with pytest.raises(UserError, match=message):
            run_command(checkpoint, *words, wrong)
    with pytest.raises(UserError, match="There is no checkpoint"):
        load_model(tmp_path / "absent.ckpt")
    (tmp_path / "foreign.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"foreign\.pth"):
        load_model(tmp_path / "foreign.pth")
    assert not description_file(tmp_path / "table.csv").exists()


def test_importing_the_package_stays_light() -> None:
    code = "import sys, ecgfounder_train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert ecgfounder_train.load_model is load_model
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        _ = ecgfounder_train.load_modle  # type: ignore[attr-defined]


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("folder", "words", "expected"),
    [
        ("cinc2021", (), "81 records found = 80 predicted + 1 rejected (1 constant_lead)"),
        ("ludb", (), "40 records found = 40 predicted + 0 rejected"),
        ("ptbxl500", (), "110 records found = 110 predicted + 0 rejected. Warnings"),
        ("odd/reduced_leads", (), "missing_leads"),
    ],
)
def test_the_open_excerpts_are_predicted(
    checkpoint: Path,
    real_data: Path,
    tmp_path: Path,
    folder: str,
    words: tuple[str, ...],
    expected: str,
) -> None:
    output = f"output={tmp_path / 'table.parquet'}"
    said = run_command(checkpoint, f"input={real_data / folder}", output, *words)
    assert expected.removesuffix(". Warnings") in said[1]
    frame = pl.read_parquet(tmp_path / "table.parquet")
    good = frame.filter(pl.col("status") == "ok")
    assert good.select("NORM", "MI", "STTC", "CD", "HYP").null_count().sum_horizontal().item() == 0

"""The command `scripts/predict.py`: find recordings, predict in parts, write one table.

A batch of more than `part_size` recordings is written in parts to a folder beside the output, each
whole or absent; the same command after an interruption keeps the parts that are there. At the end
the parts become the table.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ecgfounder_train.core.config import parse_settings
from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file, sha256_file, sweep_partial_files
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.inference.find import FoundRecords, find_records
from ecgfounder_train.inference.inputs import InputOptions
from ecgfounder_train.inference.model import EcgModel, load_model
from ecgfounder_train.inference.pipeline import (
    PipelineSettings,
    RecordResult,
    prepare_ahead,
    run_network,
)
from ecgfounder_train.inference.strips import StripWriter
from ecgfounder_train.inference.table import OutputTable, Tally
from ecgfounder_train.settings.evaluation import PredictOptions

METADATA_KEY = b"ecgfounder_train"
"""Of the parquet file's schema metadata: JSON with the outputs, thresholds and fingerprints."""
PARTS_SUFFIX = ".parts"
_KEY_FILE = "key.json"


@dataclass(frozen=True, kw_only=True)
class PredictSettings(PredictOptions, name=""):
    """The keys of `predict` that do not choose the weights."""

    @property
    def options(self) -> InputOptions:
        """What files do not state."""
        leads = self.input_leads
        if leads is not None and (isinstance(leads, str) or not all(map(str, leads))):
            raise UserError(f"input_leads={leads!r} is not a list, such as input_leads=[I,II,V1].")
        names = tuple(map(str, leads)) if leads is not None else None
        return InputOptions(self.input_fs, self.input_unit, names)

    @property
    def pipeline(self) -> PipelineSettings:
        """How recordings pass the network."""
        return PipelineSettings(
            self.batch_size,
            self.pool,
            self.derive_leads,
            self.num_workers,
            str(self.precision),
            with_features=self.output_kind == "embeddings",
        )


def predict_files(config: Mapping[str, Any], checkpoint: Path, device: str) -> list[str]:
    """Predict all that `input` means, write the table, and return the lines to print.

    Args:
        config: The keys of `PredictSettings`.
        checkpoint: Weights.
        device: auto, cpu or cuda.

    Raises:
        UserError: A setting cannot be, nothing was found, or the weights are none.
    """
    given = {**config, "precision": str(config.get("precision", "32"))}
    settings = parse_settings(PredictSettings, given, "")
    output = Path(settings.output)
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(f"output={output} must end in .csv or .parquet.")
    found = find_records(settings.input, settings.options)
    pipeline = settings.pipeline
    model = load_model(checkpoint, device).with_windows(settings.windows, settings.min_duration_s)
    with_patient = any(item.patient is not None for item in found.records)
    table = OutputTable(
        model.trained,
        settings.output_kind,
        settings.threshold,
        settings.pool,
        with_patient,
        with_maximum=bool(settings.per_window),
    )
    strips = None
    if settings.strips is not None:
        strips = StripWriter(
            Path(settings.strips), table, settings.max_strips, pipeline.derive_leads
        )
    key = _key(checkpoint, settings, found)
    tally = _predict_in_parts(model, found, table, settings, key, output, strips)
    lines = [found.summary, tally.summary()]
    if settings.output_kind == "probabilities":
        lines += [f"Probabilities: {table.calibration_summary}.", f"Findings: {table.decided}."]
    lines.append(f"Predictions: {output} (outputs and thresholds: {description_file(output)})")
    if windows_file(output).is_file():
        lines.append(f"Windows with their times: {windows_file(output)}")
    if found.not_read:
        lines.append(f"Files that were not read: {_list_not_read(found, output)}")
    if strips is not None:
        lines.append(f"Strips: {strips.finish()} (stay on this machine: they show file names)")
    return lines


def description_file(output: Path) -> Path:
    """Return the JSON file beside a table that describes its columns."""
    return output.with_name(f"{output.stem}.outputs.json")


def windows_file(output: Path) -> Path:
    """Return the table beside another that has a row per window, with its start in s."""
    return output.with_name(f"{output.stem}.windows{output.suffix}")


def _list_not_read(found: FoundRecords, output: Path) -> Path:
    path = output.with_name(f"{output.stem}.not_read.csv")
    frame = pl.DataFrame(
        list(found.not_read), {"file": pl.String, "reason": pl.String}, orient="row"
    )
    with atomic_file(path) as handle:
        write_frame(frame, handle)
    return path


def _key(checkpoint: Path, settings: PredictSettings, found: FoundRecords) -> str:
    """Return what parts must share to belong to one table."""
    weights = checkpoint
    if checkpoint.is_dir():
        weights = next(iter(sorted(checkpoint.glob("*.safetensors"))), checkpoint)
    return fingerprint(
        {
            "weights": sha256_file(weights) if weights.is_file() else str(weights),
            "settings": {
                name: str(getattr(settings, name))
                for name in PredictSettings.__dataclass_fields__
                if name not in ("output", "strips", "max_strips", "batch_size", "num_workers")
            },
            "records": [[item.name, item.item, str(item.options)] for item in found.records],
        }
    )


def _predict_in_parts(
    model: EcgModel,
    found: FoundRecords,
    table: OutputTable,
    settings: PredictSettings,
    key: str,
    output: Path,
    strips: StripWriter | None,
) -> Tally:
    folder = output.with_name(output.name + PARTS_SUFFIX)
    _open_parts(folder, key)
    size = settings.part_size
    starts = range(0, len(found), size)
    parts = [folder / f"part-{number:06d}.parquet" for number in range(len(starts))]
    left = [number for number, part in enumerate(parts) if not part.is_file()]
    done = sum(
        len(found.records[start : start + size])
        for number, start in enumerate(starts)
        if number not in set(left)
    )
    references = (
        item for number in left for item in found.records[starts[number] : starts[number] + size]
    )
    meter = ProgressMeter("predicting", len(found), "records", done=done)
    # One stream over all parts: batches and reading ahead cross their borders.
    pipeline = settings.pipeline
    prepared = prepare_ahead(references, model.profile, pipeline)

    def show_share(share: float) -> None:
        meter.update(meter.done, f"{share:.0%} of a long recording")

    with meter:
        results = run_network(model.trained, prepared, model.device, pipeline, show_share)
        for number in left:
            rows: list[RecordResult] = []
            count = len(found.records[starts[number] : starts[number] + size])
            for _ in range(count):
                rows.append(next(results))
                meter.update(meter.done + 1)
            # Before the part: where that is whole, so are its windows.
            windows = table.windows_frame(rows, settings.per_window)
            if windows.height:
                with atomic_file(_windows_part(parts[number])) as handle:
                    windows.write_parquet(handle)
            with atomic_file(parts[number]) as handle:
                table.frame(rows).write_parquet(handle)
            if strips is not None:
                strips.write(rows)
        next(results, None)
    tally = Tally()
    _join(parts, table, output, tally)
    shutil.rmtree(folder)
    return tally


def _open_parts(folder: Path, key: str) -> None:
    """Make the folder of parts; what another model, input or setting left there is deleted."""
    file = folder / _KEY_FILE
    if folder.is_dir():
        sweep_partial_files(folder)
        if file.is_file() and json.loads(file.read_text()) == {"key": key}:
            return
        if not file.is_file() and any(folder.iterdir()):
            raise UserError(f"{folder} is in the way and was not made by predict. Move it away.")
        shutil.rmtree(folder)
    with atomic_file(file, "w") as handle:
        json.dump({"key": key}, handle)


def _windows_part(part: Path) -> Path:
    return part.with_suffix(".windows.parquet")


def _join(parts: Sequence[Path], table: OutputTable, output: Path, tally: Tally) -> None:
    description = json.dumps(table.metadata(), indent=1)

    def frames() -> Iterator[pl.DataFrame]:
        for part in parts:
            frame = pl.read_parquet(part)
            tally.add(frame)
            yield frame

    _write_frames(frames(), output, description)
    windows_file(output).unlink(missing_ok=True)
    if windows := [_windows_part(part) for part in parts if _windows_part(part).is_file()]:
        _write_frames(map(pl.read_parquet, windows), windows_file(output), description)
    with atomic_file(description_file(output), "w") as handle:
        handle.write(description + "\n")


def _write_frames(frames: Iterable[pl.DataFrame], output: Path, description: str) -> None:
    """Write frames of the same columns as one CSV or parquet file."""
    with atomic_file(output) as handle:
        if output.suffix == ".csv":
            for number, frame in enumerate(frames):
                write_frame(frame, handle, include_header=number == 0)
            return
        writer: pq.ParquetWriter | None = None
        for frame in frames:
            arrow: pa.Table = frame.to_arrow()
            if writer is None:
                metadata = {METADATA_KEY: description.encode()}
                writer = pq.ParquetWriter(handle, arrow.schema.with_metadata(metadata))
            writer.write_table(arrow.cast(writer.schema))
        if writer is not None:
            writer.close()


def read_metadata(path: Path) -> dict[str, Any]:
    """Return what a table of predictions states about its columns.

    Raises:
        UserError: It states nothing.
    """
    beside = description_file(path)
    if path.suffix == ".parquet":
        stored = (pq.read_schema(path).metadata or {}).get(METADATA_KEY)
        if stored is not None:
            return dict(json.loads(stored))
    if not beside.is_file():
        raise UserError(f"{path} does not describe its columns, and {beside} is absent.")
    return dict(json.loads(beside.read_text(encoding="utf-8")))

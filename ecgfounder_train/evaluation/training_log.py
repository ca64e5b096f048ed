"""Tolerant reader of a run's metrics.csv, which may be old, short, or cut by a kill."""

from pathlib import Path

import polars as pl

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.figures.training import Series, without_gaps

_X_COLUMNS = {"samples_seen": "samples seen", "global_step": "optimizer steps", "epoch": "epoch"}


def read_training_log(path: Path | str | None) -> tuple[dict[str, Series], str]:
    """Return the measured series by column name, and what their x axis is.

    A missing or empty file gives no series. Blank cells were not measured on that row.
    """
    if path is None or not Path(path).is_file() or not Path(path).stat().st_size:
        return {}, ""
    try:
        text = pl.read_csv(
            path, infer_schema=False, truncate_ragged_lines=True, encoding="utf8-lossy"
        )
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}). Move it away: the report then has no "
            "training curves."
        ) from error
    frame = text.select(pl.all().cast(pl.Float64, strict=False))
    x_name = next((name for name in _X_COLUMNS if name in frame.columns), None)
    if x_name is None:
        frame = frame.with_row_index("row")
        x = frame["row"].cast(pl.Float64).to_list()
    else:
        x = frame[x_name].to_list()
    series = {
        name: without_gaps(x, frame[name].to_list())
        for name in frame.columns
        if name not in ("row", *_X_COLUMNS)
    }
    measured = {name: pair for name, pair in series.items() if len(pair[0])}
    return measured, _X_COLUMNS.get(x_name or "", "row of the log")

"""Results as a table: probabilities with names, thresholds and yes/no, or logits, or embeddings."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import expit

from ecgfounder_train import __version__
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.inference.checks import summary
from ecgfounder_train.inference.pipeline import OK, RecordResult
from ecgfounder_train.weights.decisions import RULES, Decisions
from ecgfounder_train.weights.trained_model import TrainedModel

KINDS = ("probabilities", "logits", "embeddings")
YES = "yes:"
"""Begins the name of a label's yes/no column."""
OUTPUT = "output:"
"""Begins the column name of an output that is called like another column, such as `status`."""
MAXIMUM = "max:"
"""Begins the name of the column of the largest value over a recording's windows."""
LONG_S = 600.0
"""Recordings from this length on have a row per window in a table of their own."""
SEPARATOR = "; "
NOT_CALIBRATED = "the plain sigmoid of the logits, NOT calibrated: rank by them, do not read them"

FACTS: dict[str, Any] = {
    "record": pl.String,
    "status": pl.String,
    "warnings": pl.String,
    "detail": pl.String,
    "num_windows": pl.Int32,
    "fs": pl.Float64,
    "duration_s": pl.Float64,
}


@dataclass(frozen=True)
class OutputTable:
    """How results become rows.

    Attributes:
        trained: The model.
        kind: One of `KINDS`.
        threshold: Name of the rule for yes and no; None for none.
        pool: How windows were pooled; calibration fits one way only.
        with_patient: Whether rows have a patient (from a list of files).
        with_maximum: Whether rows have the largest value over the windows (`max:NAME`) beside the
            pooled one.
    """

    trained: TrainedModel
    kind: str = "probabilities"
    threshold: str | None = "youden"
    pool: str = "mean"
    with_patient: bool = False
    with_maximum: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            hint = did_you_mean(self.kind, KINDS)
            raise UserError(f"output_kind={self.kind!r} is unknown.{hint}")
        if self.threshold is not None and self.threshold not in RULES:
            raise UserError(
                f"threshold={self.threshold!r} is unknown." + did_you_mean(self.threshold, RULES)
            )

    @cached_property
    def decisions(self) -> Decisions | None:
        """Thresholds and calibration that hold for these logits."""
        fitted = self.trained.decisions
        return fitted if fitted is not None and fitted.suits(self.pool) else None

    @cached_property
    def _binary(self) -> list[int]:
        return [n for n, output in enumerate(self.trained.outputs) if output.kind == "binary"]

    @cached_property
    def _fitted_labels(self) -> list[str]:
        return [self.trained.labels[number] for number in self._binary]

    @cached_property
    def _calibrated(self) -> Decisions | None:
        return self.decisions.for_labels(self._fitted_labels) if self.decisions else None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the outputs' columns; a quantity's has its unit.

        A name that is also another column's gets `OUTPUT` before it.
        """
        with_unit = self.kind != "logits"
        names = [
            f"{output.name} ({output.unit})" if output.unit and with_unit else output.name
            for output in self.trained.outputs
        ]
        taken = {*FACTS, "patient", "findings", *(f"{YES}{name}" for name in names)}
        columns: list[str] = []
        for name in names:
            while name in taken:
                name = f"{OUTPUT}{name}"
            taken |= {name, f"{YES}{name}"}
            columns.append(name)
        return tuple(columns)

    @cached_property
    def _is_calibrated(self) -> NDArray[np.bool_]:
        """Whether an output has a fitted calibration curve. Shape: (num_outputs,)."""
        flags = np.zeros(len(self.trained.outputs), np.bool_)
        if self._calibrated is not None:
            curves = self._calibrated.calibration.curves
            flags[self._binary] = [curve.method != "none" for curve in curves]
        return flags

    @property
    def calibration_summary(self) -> str:
        """Return for how many outputs the probabilities are calibrated, and what the others are."""
        if self._calibrated is not None:
            count, total = int(self._is_calibrated.sum()), len(self._binary)
            others = "; the others are the plain sigmoid of the logits" if count < total else ""
            return (
                f"calibrated: {self._calibrated.calibration.summary} labels, on "
                f"{self._calibrated.fitted_on}{others}"
            )
        fitted = self.trained.decisions
        if fitted is not None:
            return f"{NOT_CALIBRATED} (calibration was fitted for {fitted.reading})"
        return f"{NOT_CALIBRATED} (scripts/evaluate.py fits it where validation records are)"

    @property
    def decided(self) -> str:
        """Return for how many outputs there is a yes or no."""
        if self.threshold is None:
            return "none, as threshold=null asks"
        count = int(self._in_findings.sum())
        text = f"{count} of {len(self._binary)} outputs have a threshold ({self.threshold})"
        return text if count else f"{text}; no findings column is written"

    @cached_property
    def _in_findings(self) -> NDArray[np.bool_]:
        """Whether `findings` may list an output: its threshold was fitted on enough patients.

        `half` is a rule without a fit: there the calibration has to be fitted.
        """
        known = np.isfinite(self.thresholds)
        return known & self._is_calibrated if self.threshold == "half" else known

    def values(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities, and quantities in their own unit.

        Shape: (N, num_outputs) -> (N, num_outputs).
        """
        scores = np.asarray(logits, np.float64)
        values = np.empty_like(scores)
        for number, output in enumerate(self.trained.outputs):
            if output.kind == "regression":
                values[:, number] = scores[:, number] * output.std + output.mean
        binary = scores[:, self._binary]
        if self._calibrated is None:
            values[:, self._binary] = expit(binary)
        elif len(binary):
            values[:, self._binary] = self._calibrated.calibration.apply(binary)
        return values

    @cached_property
    def thresholds(self) -> NDArray[np.float64]:
        """Logit from which on an output is a yes; NaN: none. Shape: (num_outputs,)."""
        limits = np.full(len(self.trained.outputs), np.nan)
        if self.threshold is not None and self._calibrated is not None:
            limits[self._binary] = self._calibrated.thresholds[self.threshold].values
        return limits

    @cached_property
    def threshold_values(self) -> NDArray[np.float64]:
        """The thresholds as probabilities. Shape: (num_outputs,)."""
        limits = self.thresholds.copy()
        known = np.isfinite(limits)
        as_values = self.values(np.where(known, limits, 0.0)[None].astype(np.float64))[0]  # type: ignore[arg-type]
        return np.where(known, as_values, np.nan)

    def frame(self, results: Sequence[RecordResult]) -> pl.DataFrame:
        """Return a row per result, in their order."""
        facts = pl.DataFrame(
            [
                (
                    result.name,
                    result.prepared.status,
                    SEPARATOR.join(dict.fromkeys(r.code.value for r in result.prepared.remarks)),
                    result.prepared.detail or summary(result.prepared.remarks),
                    result.num_windows,
                    result.prepared.fs,
                    result.prepared.duration_s,
                )
                for result in results
            ],
            schema=FACTS,
            orient="row",
        ).with_columns(pl.col("fs", "duration_s").fill_nan(None))
        if self.with_patient:
            patients = [result.prepared.reference.patient for result in results]
            facts.insert_column(1, pl.Series("patient", patients, pl.String))
        if self.kind == "embeddings":
            return facts.hstack(self._matrix([r.features for r in results], self._embedding_names))
        logits = [result.logits for result in results]
        if self.kind == "logits":
            return facts.hstack(self._matrix(logits, self.columns))
        known = np.array([item is not None for item in logits], bool)
        scores = np.full((len(results), len(self.columns)), np.nan)
        if known.any():
            scores[known] = np.stack([item for item in logits if item is not None])
        values = scores.copy()
        values[known] = self.values(scores[known].astype(np.float32))
        table = pl.DataFrame(values.astype(np.float32), schema=list(self.columns))
        decided = {
            f"{YES}{self.columns[number]}": pl.Series(
                np.where(known, scores[:, number] >= self.thresholds[number], False)
            ).set(pl.Series(~known), None)
            for number in np.flatnonzero(np.isfinite(self.thresholds))
        }
        parts = [facts]
        if self._in_findings.any():
            parts.append(pl.DataFrame({"findings": self._findings(scores, values)}))
        parts.append(table.fill_nan(None))
        if self.with_maximum:
            parts.append(self._maximum(results))
        if decided:
            parts.append(pl.DataFrame(decided))
        return pl.concat(parts, how="horizontal")

    def _maximum(self, results: Sequence[RecordResult]) -> pl.DataFrame:
        """Return the largest value of each output over a recording's windows."""
        rows: list[NDArray[Any] | None] = []
        for result in results:
            if result.logits is None:
                rows.append(None)
            elif result.windows is None:
                rows.append(self.values(result.logits[None])[0])
            else:
                rows.append(self.values(result.windows.logits).max(0))
        return self._matrix(rows, [f"{MAXIMUM}{name}" for name in self.columns])

    def windows_frame(
        self, results: Sequence[RecordResult], per_window: bool | None = True
    ) -> pl.DataFrame:
        """Return a row per window with its start and end in s.

        Args:
            results: Of recordings.
            per_window: True: of each recording of several windows; None: of those longer than
                `LONG_S`; False: of none.
        """
        size = self.trained.profile.duration_s
        frames = []
        for result in results:
            windows = result.windows
            is_long = result.prepared.duration_s > LONG_S
            if windows is None or per_window is False or (per_window is None and not is_long):
                continue
            frame = pl.DataFrame(
                {
                    "record": [result.name] * len(windows.starts_s),
                    "window": np.arange(len(windows.starts_s), dtype=np.int32),
                    "start_s": windows.starts_s,
                    "end_s": np.minimum(windows.starts_s + size, result.prepared.duration_s),
                }
            )
            if self.kind == "embeddings":
                assert windows.features is not None
                values = self._matrix(list(windows.features), self._embedding_names)
            elif self.kind == "logits":
                values = self._matrix(list(windows.logits), self.columns)
            else:
                found = self.values(windows.logits).astype(np.float32)
                values = self._matrix(list(found), self.columns)
            frames.append(frame.hstack(values))
        return pl.concat(frames) if frames else pl.DataFrame()

    def _findings(
        self, scores: NDArray[np.float64], values: NDArray[np.float64]
    ) -> list[str | None]:
        rows: list[str | None] = []
        for score, value in zip(scores, values, strict=True):
            if np.isnan(score).all():
                rows.append(None)
                continue
            positive = np.flatnonzero((score >= self.thresholds) & self._in_findings)
            order = positive[np.argsort(-value[positive], kind="stable")]
            rows.append(SEPARATOR.join(self.trained.labels[number] for number in order))
        return rows

    @cached_property
    def _embedding_names(self) -> tuple[str, ...]:
        network: Any = self.trained.model
        return tuple(f"e{number:04d}" for number in range(network.num_features))

    def _matrix(self, rows: Sequence[NDArray[Any] | None], names: Sequence[str]) -> pl.DataFrame:
        matrix = np.full((len(rows), len(names)), np.nan, np.float32)
        for number, row in enumerate(rows):
            if row is not None:
                matrix[number] = row
        return pl.DataFrame(matrix, schema=list(names)).fill_nan(None)

    def metadata(self) -> dict[str, Any]:
        """Return the description of the columns, in plain containers."""
        trained = self.trained
        limits, as_values = self.thresholds, self.threshold_values
        methods: dict[str, tuple[str, str | None]] = {}
        if self._calibrated is not None:
            curves = zip(self._fitted_labels, self._calibrated.calibration.curves, strict=True)
            methods = {label: (curve.method, curve.reason) for label, curve in curves}
        reasons: dict[str, str | None] = {}
        if self.threshold is not None and self._calibrated is not None:
            fitted = self._calibrated.thresholds[self.threshold]
            reasons = dict(zip(self._fitted_labels, fitted.reasons, strict=True))
        return {
            "written_by": f"ecgfounder_train {__version__}",
            "kind": self.kind,
            "model": trained.model_name,
            "vocabulary": trained.vocabulary,
            "fingerprints": dict(trained.fingerprints),
            "signal_profile": trained.profile.name,
            "samples_seen": trained.samples_seen,
            "licence": trained.licence,
            "pool": self.pool,
            "probabilities": self.calibration_summary,
            "calibrated": (
                f"0 of {len(self._binary)}"
                if self._calibrated is None
                else self._calibrated.calibration.summary
            ),
            "threshold": self.threshold if self._calibrated is not None else None,
            "outputs": [
                {
                    "name": output.name,
                    "column": self.columns[number],
                    "kind": output.kind,
                    "unit": output.unit,
                    "calibration": methods.get(output.name, ("none", None))[0],
                    "calibration_note": methods.get(output.name, ("none", None))[1],
                    "threshold_probability": _or_none(as_values[number]),
                    "threshold_logit": _or_none(limits[number]),
                    "threshold_note": reasons.get(output.name),
                }
                for number, output in enumerate(trained.outputs)
            ],
        }


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass
class Tally:
    """What became of the recordings; the parts add up to what was found."""

    predicted: int = 0
    rejected: Counter[str] | None = None
    warnings: Counter[str] | None = None
    warned: int = 0
    not_reached: int = 0

    def add(self, frame: pl.DataFrame) -> None:
        """Count the rows of a table."""
        self.rejected = self.rejected or Counter()
        self.warnings = self.warnings or Counter()
        for status, warnings in frame.select("status", "warnings").iter_rows():
            if status != OK:
                self.rejected[status] += 1
                continue
            self.predicted += 1
            codes = [code for code in (warnings or "").split(SEPARATOR) if code]
            self.warned += bool(codes)
            self.warnings.update(codes)

    @property
    def num_rejected(self) -> int:
        """Recordings without a result."""
        return sum((self.rejected or Counter()).values())

    def summary(self) -> str:
        """Return the sum, the reasons and the warnings."""
        found = self.predicted + self.num_rejected
        text = (
            f"{found:,} records found = {self.predicted:,} predicted + "
            f"{self.num_rejected:,} rejected{_listed(self.rejected)}."
        )
        if self.warned:
            text += f" Warnings on {self.warned:,} predicted records{_listed(self.warnings)}."
        return text


def _listed(counts: Counter[str] | None) -> str:
    if not counts:
        return ""
    return f" ({', '.join(f'{count:,} {name}' for name, count in sorted(counts.items()))})"

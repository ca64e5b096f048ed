"""Thresholds and calibration: fitted on validation alone, kept beside their weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.metrics import (
    Calibration,
    Thresholds,
    clusters_from_keys,
    fit_calibration,
    fit_thresholds,
)
from ecgfounder_train.metrics.predictions import Predictions

FORMAT_VERSION = 2
"""2 counts the patients that thresholds and curves were fitted on; 1 is still read."""
RULES: dict[str, tuple[str, float | None]] = {
    "youden": ("youden", None),
    "f1": ("f1", None),
    "sensitivity_90": ("sensitivity", 0.9),
    "specificity_90": ("specificity", 0.9),
    "half": ("half", None),
}
"""Names of `threshold=` -> rule and its target."""


@dataclass(frozen=True)
class Decisions:
    """What turns logits into probabilities and into yes or no, for one checkpoint.

    Attributes:
        thresholds: By the names of `RULES`.
        calibration: Platt's or isotonic, per label.
        checkpoint: SHA-256 of the checkpoint they were fitted for.
        reading: How logits came to be (pooling, crops); they fit no other way.
        num_records: Validation records they were fitted on.
        num_patients: Patients of these records; None where unknown.
    """

    thresholds: dict[str, Thresholds]
    calibration: Calibration
    checkpoint: str
    reading: str
    num_records: int
    num_patients: int | None = None

    @property
    def fitted_on(self) -> str:
        """What they were fitted on, for reports: "23 validation records of 20 patients"."""
        records = f"{self.num_records:,} validation records"
        return records + (
            "" if self.num_patients is None else f" of {self.num_patients:,} patients"
        )

    def summary(self, rule: str) -> str:
        """Return for how many labels there are thresholds and calibration, in one sentence."""
        values = self.thresholds[rule].values
        known = sum(value == value for value in values)
        return (
            f"Calibrated: {self.calibration.summary} labels; thresholds ({rule}): {known} of "
            f"{len(values)}; both on {self.fitted_on}."
        )

    @classmethod
    def fit(
        cls, predictions: Predictions, checkpoint: str, reading: str, method: str = "isotonic"
    ) -> "Decisions":
        """Return what the validation split's predictions give.

        Raises:
            UserError: A row is not of the validation split.
        """
        splits = set(predictions.split.tolist())
        if splits != {"val"}:
            named = ", ".join(sorted(str(split) for split in splits))
            raise UserError(
                f"Thresholds and calibration are fitted on validation records only, not on {named}."
            )
        arrays = (predictions.logits, predictions.targets, predictions.observed)
        patients = clusters_from_keys(predictions.patient_key, predictions.record_key)
        common: dict[str, Any] = {
            "split": "val", "labels": predictions.labels, "patients": patients
        }  # fmt: skip
        return cls(
            {
                name: fit_thresholds(*arrays, rule=rule, target=target, **common)
                for name, (rule, target) in RULES.items()
            },
            fit_calibration(*arrays, method=method, **common),
            checkpoint,
            reading,
            predictions.num_records,
            predictions.num_patients,
        )

    def for_labels(self, labels: Sequence[str]) -> "Decisions":
        """Return the same for some of the labels, in their order.

        Raises:
            UserError: There is none for one of them.
        """
        return Decisions(
            {name: fitted.for_labels(labels) for name, fitted in self.thresholds.items()},
            self.calibration.for_labels(labels),
            self.checkpoint,
            self.reading,
            self.num_records,
            self.num_patients,
        )

    def suits(self, pool: str, crops: int = 1) -> bool:
        """Return whether it was fitted for logits that are pooled and cropped like this."""
        return self.reading.startswith(reading_of(pool, crops, ""))

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers; `from_dict` takes them."""
        return {
            "format_version": FORMAT_VERSION,
            "fitted_on": "val",
            "checkpoint_sha256": self.checkpoint,
            "reading": self.reading,
            "num_records": self.num_records,
            "num_patients": self.num_patients,
            "thresholds": {name: fitted.to_dict() for name, fitted in self.thresholds.items()},
            "calibration": self.calibration.to_dict(),
        }

    @classmethod
    def from_dict(
        cls, content: Any, where: str, remedy: str = "Delete it; it is fitted again."
    ) -> "Decisions":
        """Return what `to_dict` was made from.

        Raises:
            UserError: It is of another format version or incomplete; names the file `where` and
                the `remedy`.
        """
        if not isinstance(content, dict) or content.get("format_version") not in (1, 2):
            raise UserError(f"{where} has decisions of another format version. {remedy}")
        try:
            return cls(
                {name: Thresholds.from_dict(item) for name, item in content["thresholds"].items()},
                Calibration.from_dict(content["calibration"]),
                str(content["checkpoint_sha256"]),
                str(content["reading"]),
                int(content["num_records"]),
                content.get("num_patients"),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where} holds incomplete thresholds or calibration ({type(error).__name__}: "
                f"{error}). {remedy}"
            ) from error

    def write(self, path: Path) -> None:
        """Write the JSON file, whole or absent."""
        with atomic_file(path, "w") as handle:
            json.dump(self.to_dict(), handle, indent=1)


def reading_of(pool: str, crops: int, calibration: str) -> str:
    """Return the words for how logits came to be, as decisions keep them."""
    return f"pool={pool}, crops={crops}, calibration={calibration}"


def decisions_file(checkpoint: Path) -> Path:
    """Return the file of thresholds and calibration beside a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}.calibration.json")


def read_decisions(path: Path, checkpoint: str, reading: str | None = None) -> Decisions | None:
    """Return what `write` wrote, None where there is none for this checkpoint and reading.

    Args:
        path: From `decisions_file`.
        checkpoint: SHA-256 of the weights.
        reading: How logits are made, as in `Decisions`; None takes any.

    Raises:
        UserError: The file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Delete it; it is fitted again.") from error
    decisions = Decisions.from_dict(content, str(path))
    if reading is not None and content["format_version"] == 1:
        return None  # it does not count patients: fit again
    # Weights that were trained further, or windows read otherwise, have other logits.
    if decisions.checkpoint != checkpoint or reading not in (None, decisions.reading):
        return None
    return decisions

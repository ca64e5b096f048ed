"""Task of a fine-tuning: target columns of a table and their kind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ecgfounder_train.core.config import parse_settings
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint

KINDS = ("binary", "multi_label", "regression", "icd")
TRANSFORMS = ("identity", "log")


@dataclass(frozen=True)
class Task:
    """A file of `configs/task`.

    Args:
        name: Stands in checkpoints and reports.
        kind: `binary` (one label), `multi_label`, `regression`, or `icd` (labels from prefixes of
            codes).
        table: CSV with a row per record; None where the answers are in prepared shards.
        records: Folder the record paths start from; None: the table's own.
        record_column: Path of the WFDB record, with or without extension.
        patient_column: Id of the patient; None: each record counts as one.
        split_column: Column that gives each row its part; None: drawn by patient.
        folds: Values of `split_column` that mean `val` and `test`; what is named by neither trains.
            Empty: the column says train, val or test.
        split_seed: Another seed draws other patients.
        val_fraction, test_fraction: Shares of the patients where parts are drawn.
        targets: Columns of the table; with prepared shards names of labels, of groups of labels,
            `age_years` or `sex_female`.
        positive_above, positive_below: Makes yes/no labels of numbers.
        transform: `log` learns and reports the natural logarithm of a quantity.
        unit: Of the quantity.
        minimum, maximum: Quantities outside are missing answers, and counted.
        codes_column: Column with codes, of which `profiles` or `vocabulary` make labels.
        codes_separator: Between the codes of a cell.
        codes_pattern: Regular expression with one group, instead of a separator.
        profiles: Label -> prefixes of codes (dots and case do not count).
        vocabulary: Labels of a vocabulary, by its codes.
        min_positives: Labels with fewer positive training patients are left out, and named.
    """

    name: str
    kind: str
    table: str | None = None
    records: str | None = None
    record_column: str = "record"
    patient_column: str | None = "patient"
    split_column: str | None = None
    folds: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    split_seed: int = 0
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    targets: Sequence[str] = ()
    positive_above: float | None = None
    positive_below: float | None = None
    transform: str = "identity"
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    codes_column: str | None = None
    codes_separator: str = ";"
    codes_pattern: str | None = None
    profiles: Mapping[str, Sequence[str]] = field(default_factory=dict)
    vocabulary: str | None = None
    min_positives: int = 1

    def __post_init__(self) -> None:
        for key, value, valid in (
            ("kind", self.kind, KINDS),
            ("transform", self.transform, TRANSFORMS),
        ):
            if value not in valid:
                raise UserError(f"task.{key}={value!r} is unknown.{did_you_mean(value, valid)}")
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", [self.targets])
        object.__setattr__(self, "targets", tuple(str(name) for name in self.targets))
        if len(set(self.targets)) < len(self.targets):
            raise UserError(f"task.targets={list(self.targets)} names a column twice.")
        if self.kind == "binary" and len(self.targets) != 1:
            raise UserError(
                f"task.kind=binary has one target, task.targets={list(self.targets)}. Use "
                "kind=multi_label for several."
            )
        if self.codes_column is None:
            if self.kind == "icd":
                raise UserError("task.kind=icd needs task.codes_column and task.profiles.")
            if not self.targets:
                raise UserError("task.targets is empty: name the columns that hold the answers.")
        else:
            self._check_codes()
        if self.kind != "regression" and (self.transform != "identity" or self.unit):
            raise UserError("task.transform and task.unit belong to task.kind=regression.")
        if self.kind == "regression" and None not in (self.positive_above, self.positive_below):
            raise UserError("task.positive_above and positive_below belong to yes/no kinds.")
        if unknown := sorted(set(self.folds) - {"val", "test"}):
            raise UserError(f"task.folds.{unknown[0]} is none of val and test.")
        if self.folds and self.split_column is None:
            raise UserError("task.folds names values of a column: give task.split_column too.")
        if not 0 < self.val_fraction < 1 or not 0 <= self.test_fraction < 1:
            raise UserError("task.val_fraction and task.test_fraction are shares below 1.")
        if (1 - self.val_fraction) * (1 - self.test_fraction) < 0.5:
            raise UserError(
                f"task.val_fraction={self.val_fraction} and task.test_fraction="
                f"{self.test_fraction} leave less than half of the patients for training."
            )

    def _check_codes(self) -> None:
        if self.kind not in ("icd", "multi_label"):
            raise UserError("task.codes_column belongs to task.kind=icd or multi_label.")
        if bool(self.profiles) == bool(self.vocabulary):
            raise UserError(
                "task.codes_column needs either task.profiles (label: [prefixes]) or "
                "task.vocabulary (labels by their codes)."
            )
        if self.targets:
            raise UserError("task.targets and task.codes_column exclude each other.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None) -> "Task":
        """Return the task of a config's `task` section.

        Raises:
            UserError: A key or value is wrong; the message names it.
        """
        if not config:
            raise UserError(
                "Name a task with task=NAME (a file of configs/task), or task=table with "
                "task.table=CSV task.kind=KIND task.targets=[COLUMN]."
            )
        return parse_settings(cls, config, "task")

    @property
    def is_regression(self) -> bool:
        """Whether quantities are asked for rather than yes or no."""
        return self.kind == "regression"

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes an answer or a part; not with name or folders."""
        spared = ("name", "table", "records", "unit")
        return fingerprint(
            {
                key: list(value) if isinstance(value, tuple) else _plain(value)
                for key, value in vars(self).items()
                if key not in spared
            }
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): [str(item) for item in items] for key, items in value.items()}
    return value

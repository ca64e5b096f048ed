"""Thresholds per label, fitted on the validation split only and applied unchanged elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.metrics.arrays import checked_arrays, masked_columns
from ecgfounder_train.metrics.clusters import MIN_PATIENTS, Clusters, as_clusters
from ecgfounder_train.metrics.curves import OperatingPoints, operating_points
from ecgfounder_train.metrics.intervals import undefined_reason

RULES = ("youden", "f1", "sensitivity", "specificity", "half")


def check_fitting_split(split: str, what: str) -> None:
    """Raise unless `split` is "val": a choice made on the test set inflates what it then shows.

    Raises:
        UserError: The split is another.
    """
    if split != "val":
        raise UserError(
            f"{what} are fitted on the validation split, not on {split!r}. Fit them on 'val' and "
            "apply them unchanged."
        )


def label_places(own: Sequence[str], wanted: Sequence[str], what: str) -> list[int]:
    """Return the place of each wanted label among `own`.

    Raises:
        UserError: One is not there.
    """
    places = {label: place for place, label in enumerate(own)}
    for label in wanted:
        if label not in places:
            raise UserError(f"There are no {what} of label {label!r}." + did_you_mean(label, own))
    return [places[label] for label in wanted]


@dataclass(frozen=True)
class Thresholds:
    """One logit per label from which on a record is called positive.

    Attributes:
        rule: One of `RULES`; `target` is the sensitivity or specificity asked for.
        values: Logits; NaN where the rule gives none, and `reasons` then says why.
        num_patients: Per label the patients with a positive and with a negative record it was
            fitted on, 0 for fewer than 10; empty where a file of an earlier version does not say.
    """

    labels: tuple[str, ...]
    rule: str
    target: float | None
    values: tuple[float, ...]
    reasons: tuple[str | None, ...]
    num_patients: tuple[tuple[int, int], ...] = ()

    def for_labels(self, labels: Sequence[str]) -> "Thresholds":
        """Return the thresholds of these labels in this order.

        Raises:
            UserError: A label has none.
        """
        places = label_places(self.labels, labels, "thresholds")
        return Thresholds(
            tuple(labels),
            self.rule,
            self.target,
            tuple(self.values[place] for place in places),
            tuple(self.reasons[place] for place in places),
            tuple(self.num_patients[place] for place in places) if self.num_patients else (),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers; an absent threshold is None, so that JSON takes it too."""
        return {
            "labels": list(self.labels),
            "rule": self.rule,
            "target": self.target,
            "values": [None if np.isnan(value) else value for value in self.values],
            "reasons": list(self.reasons),
            "num_patients": [list(pair) for pair in self.num_patients],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Thresholds":
        """Return what `to_dict` was made from.

        Of a file that does not count patients only the rule that is not fitted keeps its values.
        """
        values = [np.nan if value is None else float(value) for value in plain["values"]]
        reasons = list(plain["reasons"])
        counts = tuple((int(pair[0]), int(pair[1])) for pair in plain.get("num_patients", ()))
        if {len(values), len(reasons), len(counts) or len(values)} != {len(plain["labels"])}:
            raise ValueError("thresholds, reasons and counts of another number of labels")
        if not counts and plain["rule"] != "half":
            reasons = [reason or UNCOUNTED for reason in reasons]
            values = [np.nan] * len(values)
        return cls(
            tuple(plain["labels"]),
            str(plain["rule"]),
            plain["target"],
            tuple(values),
            tuple(reasons),
            counts,
        )


UNCOUNTED = "fitted by an earlier version, which did not count patients: evaluate or export again"


def patient_counts(positive: NDArray[np.bool_], codes: NDArray[np.int32]) -> tuple[int, int]:
    """Return how many patients have a positive record, and how many a negative one."""
    return len(np.unique(codes[positive])), len(np.unique(codes[~positive]))


def shareable(counts: tuple[int, int]) -> tuple[int, int]:
    """Return counts as files hold them: 0 for fewer than 10, which would point at people."""
    positive, negative = (count if count >= MIN_PATIENTS else 0 for count in counts)
    return positive, negative


def few_patients(counts: tuple[int, int], least: int = MIN_PATIENTS) -> str | None:
    """Return why nothing is fitted on so few patients; None where there are enough."""
    for number, kind in zip(counts, ("positive", "negative"), strict=True):
        if number < least:
            return f"fewer than {least} {kind} patients"
    return None


def fit_thresholds(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    split: str,
    labels: Sequence[str],
    patients: Clusters | ArrayLike | None = None,
    rule: str = "youden",
    target: float | None = None,
) -> Thresholds:
    """Return one threshold per label by a rule.

    youden: largest sensitivity + specificity. f1: largest F1. sensitivity, specificity: the
    strictest (loosest) threshold that reaches `target`. half: probability 0.5, of whatever is known
    of a label. Of equally good thresholds the strictest is taken. A threshold is a score that
    occurred, so that on the validation split it decides exactly what was counted. It needs 10
    positive and 10 negative patients.

    Args:
        split: What the records are of; only "val" is accepted.
        patients: Which patient each record is of; None: every record counts as a patient.
        target: The sensitivity or specificity to reach, above 0 and at most 1.

    Shape:
        logits, targets, observed: (B, K).

    Raises:
        UserError: The split is not "val", the rule is unknown, its target missing, superfluous or
            out of range, or the arrays are invalid.
    """
    check_fitting_split(split, "Thresholds")
    if rule not in RULES:
        raise UserError(f"There is no threshold rule {rule!r}." + did_you_mean(rule, RULES))
    needs_target = rule in ("sensitivity", "specificity")
    if needs_target and (target is None or not 0 < target <= 1):
        raise UserError(f"rule={rule} needs a target above 0 and at most 1, not {target}.")
    if not needs_target and target is not None:
        raise UserError(f"rule={rule} takes no target; target={target} was given.")
    values: list[float] = []
    reasons: list[str | None] = []
    counts: list[tuple[int, int]] = []
    num_records = len(checked_arrays(logits, targets, observed)[0])
    codes = as_clusters(np.arange(num_records) if patients is None else patients, num_records).codes
    for scores, positive, chosen in masked_columns(logits, targets, observed, labels):
        counts.append(patient_counts(positive, codes if chosen is None else codes[chosen]))
        reason = undefined_reason(int(positive.sum()), len(scores)) or few_patients(counts[-1])
        value = float("nan")
        if rule == "half":
            value, reason = 0.0, None
        elif reason is None:
            points = operating_points(scores, positive)
            place = _choose(points, rule, target)
            value = float(points.threshold[place])
            if place == 0 or (rule == "youden" and len(points.threshold) == 2):
                value, reason = float("nan"), _NO_ANSWER[rule]
            elif np.isinf(value):
                value, reason = float("nan"), "a logit is infinite"
        values.append(value)
        reasons.append(reason)
    return Thresholds(
        tuple(labels), rule, target, tuple(values), tuple(reasons), tuple(map(shareable, counts))
    )


_UNSEPARATED = "the scores do not separate the classes"
_NO_ANSWER = {
    "youden": _UNSEPARATED,
    "f1": _UNSEPARATED,
    "sensitivity": _UNSEPARATED,
    "specificity": "no threshold that calls any positive is as specific",
}


def _choose(points: OperatingPoints, rule: str, target: float | None) -> int:
    """Return which operating point the rule takes; 0, which calls none positive, is no answer."""
    hits, alarms = points.true_positives, points.false_positives
    if rule == "youden":
        # In whole numbers, so that equally good thresholds compare equal.
        return int(np.argmax(hits * alarms[-1] - alarms * hits[-1]))
    if rule == "f1":
        f1: NDArray[np.float64] = 2 * hits / (hits[-1] + hits + alarms)
        return int(np.argmax(f1))
    assert target is not None
    if rule == "sensitivity":
        return int(np.argmax(hits >= target * hits[-1] - 1e-9))
    return int(np.flatnonzero(alarms[-1] - alarms >= target * alarms[-1] - 1e-9)[-1])

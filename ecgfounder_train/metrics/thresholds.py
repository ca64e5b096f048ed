"""Thresholds per label, fitted on the validation split only and applied unchanged elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.metrics.arrays import observed_columns
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
    """Return where each wanted label stands among `own`.

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
    """

    labels: tuple[str, ...]
    rule: str
    target: float | None
    values: tuple[float, ...]
    reasons: tuple[str | None, ...]

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
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers; an absent threshold is None, so that JSON takes it too."""
        return {
            "labels": list(self.labels),
            "rule": self.rule,
            "target": self.target,
            "values": [None if np.isnan(value) else value for value in self.values],
            "reasons": list(self.reasons),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Thresholds":
        """Return what `to_dict` was made from."""
        return cls(
            tuple(plain["labels"]),
            str(plain["rule"]),
            plain["target"],
            tuple(np.nan if value is None else float(value) for value in plain["values"]),
            tuple(plain["reasons"]),
        )


def fit_thresholds(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    *,
    split: str,
    labels: Sequence[str],
    rule: str = "youden",
    target: float | None = None,
) -> Thresholds:
    """Return one threshold per label by a rule.

    youden: largest sensitivity + specificity. f1: largest F1. sensitivity, specificity: the
    strictest (loosest) threshold that reaches `target`. half: probability 0.5, of whatever is known
    of a label. Of equally good thresholds the strictest is taken. A threshold is a score that
    occurred, so that on the validation split it decides exactly what was counted.

    Args:
        split: What the records are of; only "val" is accepted.
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
    for scores, positive in observed_columns(logits, targets, observed, labels):
        reason = undefined_reason(int(positive.sum()), len(scores))
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
    return Thresholds(tuple(labels), rule, target, tuple(values), tuple(reasons))


_UNTOLD = "the scores do not tell the classes apart"
_NO_ANSWER = {
    "youden": _UNTOLD,
    "f1": _UNTOLD,
    "sensitivity": _UNTOLD,
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

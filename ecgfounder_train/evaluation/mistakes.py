"""Records on which the most confident scores contradict the stated labels, for review."""

from dataclasses import dataclass

import numpy as np

from ecgfounder_train.evaluation.assessment import Assessment
from ecgfounder_train.evaluation.tables import MIN_POSITIVES


@dataclass(frozen=True)
class Mistake:
    """One record and the label it was wrong about.

    Attributes:
        row: Of the assessed predictions.
        label: The false negative or false positive one.
        missed: A false negative; else a false positive.
        rank: Share of the records that the model scored above (missed) or below it.
    """

    row: int
    label: str
    missed: bool
    rank: float

    def summary(self) -> str:
        """Return what happened, for the strip's corner."""
        if self.missed:
            return f"Stated, not seen: {self.label}"
        return f"Seen, not stated: {self.label}"


def confident_mistakes(assessment: Assessment, limit: int = 12) -> list[Mistake]:
    """Return the most confident mistakes, half false negatives, each record once.

    Labels compare by rank, not by logit: the scale of a logit is each label's own. At most two
    mistakes are of one label and kind.
    """
    predictions, table = assessment.predictions, assessment.table
    worthy = (table["num_positive_patients"] >= MIN_POSITIVES) & table["auroc"].is_not_nan()
    found: list[tuple[float, Mistake]] = []
    for column in np.flatnonzero(worthy.to_numpy()):
        seen = np.flatnonzero(predictions.observed[:, column])
        scores = predictions.logits[seen, column]
        positive = predictions.targets[seen, column] == 1
        below = np.argsort(np.argsort(scores, kind="stable"), kind="stable") / len(seen)
        for missed in (True, False):
            wrong = np.flatnonzero(positive == missed)
            surprise = 1 - below[wrong] if missed else below[wrong]
            for place in np.argsort(-surprise, kind="stable")[:2]:
                mistake = Mistake(
                    int(seen[wrong[place]]),
                    predictions.labels[column],
                    missed,
                    float(surprise[place]),
                )
                found.append((float(surprise[place]), mistake))
    chosen: list[Mistake] = []
    for missed in (True, False):
        half = 0
        for _, mistake in sorted(found, key=lambda item: -item[0]):
            taken = any(mistake.row == other.row for other in chosen)
            if mistake.missed == missed and not taken and half < (limit + missed) // 2:
                chosen.append(mistake)
                half += 1
    return chosen

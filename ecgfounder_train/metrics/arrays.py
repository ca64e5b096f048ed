"""The checks every metric makes on its input, once, with messages that name the label."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ecgfounder_train.core.errors import UserError

_LABELS_PER_BLOCK = 16
# A column of a row-major matrix costs a cache line per value; sixteen float32 columns share it.


def checked_arrays(
    logits: ArrayLike, targets: ArrayLike, observed: ArrayLike | None
) -> tuple[NDArray[np.floating], NDArray[np.generic], NDArray[np.generic] | None]:
    """Return the three as arrays of one (B, K) shape.

    Raises:
        UserError: The shapes differ or are not (B, K), or the scores are no floating numbers.
    """
    scores, truth = np.asarray(logits), np.asarray(targets)
    mask = None if observed is None else np.asarray(observed)
    if scores.ndim != 2:
        raise UserError(
            f"logits have shape {scores.shape}; (num_records, num_labels) is expected. "
            "For one label add an axis: logits[:, None]."
        )
    for name, array in (("targets", truth), ("observed", mask)):
        if array is not None and array.shape != scores.shape:
            raise UserError(
                f"{name} have shape {array.shape} but logits {scores.shape}; "
                "all must hold one value per record and label."
            )
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    return scores, truth, mask


def masked_columns(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.bool_], NDArray[np.bool_] | None]]:
    """Yield per label the scores and whether positive, of the records where it was observed, and
    which records these are (None: all).

    Shape:
        logits, targets, observed: (B, K).
        yields: K triples of arrays (num_observed,), (num_observed,), (B,).

    Raises:
        UserError: Shapes differ, a score is NaN, or a target is neither 0 nor 1 (where observed).
    """
    scores, truth, mask = checked_arrays(logits, targets, observed)
    num_labels = scores.shape[1]
    if labels is not None and len(labels) != num_labels:
        raise UserError(f"{len(labels)} label names were given for {num_labels} columns of logits.")
    for start in range(0, num_labels, _LABELS_PER_BLOCK):
        block = slice(start, start + _LABELS_PER_BLOCK)
        score_rows = np.ascontiguousarray(scores[:, block].T)
        truth_rows = np.ascontiguousarray(truth[:, block].T)
        mask_rows = None if mask is None else np.ascontiguousarray(mask[:, block].T) != 0
        for row in range(len(score_rows)):
            column, target, chosen = score_rows[row], truth_rows[row], None
            if mask_rows is not None and not mask_rows[row].all():
                chosen = mask_rows[row]
                column, target = column[chosen], target[chosen]
            _check_column(column, target, start + row, labels)
            yield column, target.astype(np.bool_, copy=False), chosen


def observed_columns(
    logits: ArrayLike,
    targets: ArrayLike,
    observed: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
) -> Iterator[tuple[NDArray[np.floating], NDArray[np.bool_]]]:
    """Yield the scores and truths of `masked_columns`."""
    for scores, positive, _ in masked_columns(logits, targets, observed, labels):
        yield scores, positive


def _check_column(
    scores: NDArray[np.floating],
    targets: NDArray[np.generic],
    index: int,
    labels: Sequence[str] | None,
) -> None:
    name = f"label {labels[index]!r}" if labels is not None else f"label number {index}"
    # The sum is NaN whenever a score is; opposite infinities give a NaN too, hence the second look.
    with np.errstate(invalid="ignore", over="ignore"):
        suspicious = bool(np.isnan(scores.sum(dtype=np.float64)))
    if suspicious and (num_nan := int(np.isnan(scores).sum())):
        raise UserError(
            f"{num_nan:,} of {len(scores):,} logits of {name} are NaN. The model diverged or its "
            "input held NaN; look at the training loss, and evaluate an earlier checkpoint."
        )
    if targets.dtype != np.bool_ and not np.isin(targets, (0, 1)).all():
        raise UserError(
            f"The targets of {name} hold values other than 0 and 1. Mark missing answers in "
            "`observed`, and give targets as 0 or 1."
        )

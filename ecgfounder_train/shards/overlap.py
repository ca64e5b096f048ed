"""Train/evaluation overlap check by record and patient key."""

from collections.abc import Iterable

import numpy as np

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards.index import INDEX_NAME, open_index
from ecgfounder_train.shards.shard_set import ShardSet


def check_overlap(
    record_keys: Iterable[str],
    patient_keys: Iterable[str | None],
    secret: str | None,
    training: ShardSet | None,
    source: str = "",
    *,
    what: str = "the evaluated set",
    remedy: str = "Evaluate a part it was not trained on (split=val or split=test).",
) -> str:
    """Return one sentence on what was checked; raise if evaluated records were trained on.

    Keys are HMACs: those of two data sets compare only if made under the same secret for the same
    source.

    Args:
        record_keys: What is to be evaluated.
        patient_keys: Of the same; None where unknown.
        secret: Fingerprint of the secret these keys were made with.
        training: The shards the model was trained on, if they are still here.
        source: Name of the evaluated source; empty for the training shards' own.
        what: What an error calls the evaluated records.
        remedy: What an error ends with.

    Raises:
        UserError: A record or patient is also in the training split.
    """
    if training is None:
        return "The training shards were not found: overlap with training could not be checked."
    manifest = training.manifest
    if source and source != manifest.source:
        return (
            f"The model was trained on another source ({manifest.source}), so its keys do not "
            "compare with these records': whether the two share recordings is not known from keys."
        )
    if secret != manifest.fingerprints["secret"]:
        return (
            f"The model was trained on the same source ({manifest.source}), but these keys were "
            "made under another secret: overlap with training could not be checked."
        )
    shared = []
    for field, name, keys in (
        ("record_key", "record", record_keys),
        ("patient_key", "patient", patient_keys),
    ):
        if both := _num_shared(training, field, keys):
            shared.append(f"{both:,} {name}{'s' if both > 1 else ''}")
    if shared:
        raise UserError(
            f"The run's training part also holds {' and '.join(shared)} of {what}: the numbers "
            f"would measure memorisation. {remedy}"
        )
    return "No evaluated record or patient is in the training part (compared by key)."


def _num_shared(training: ShardSet, field: str, keys: Iterable[str | None]) -> int:
    """Return how many of the keys are in the training split.

    Shard by shard, and through a mapping that ends with this function: of ten million rows, lists
    of keys would take gigabytes on every rank that asks, and so would the mapped pages.
    """
    asked = np.unique(np.array([key.encode() for key in keys if key], bytes))
    if not len(asked):
        return 0
    column = open_index(training.folder / INDEX_NAME, len(training.manifest.labels))[field]
    found = np.zeros(len(asked), np.bool_)
    for rows in training.row_ranges("train"):
        here = np.asarray(column[rows.start : rows.stop])
        places = np.minimum(np.searchsorted(asked, here), len(asked) - 1)
        found[places[asked[places] == here]] = True
    return int(found.sum())

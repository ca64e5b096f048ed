"""Nobody is evaluated whom the model was trained on: keys against those of the training part."""

from collections.abc import Iterable

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet


def check_overlap(
    record_keys: Iterable[str],
    patient_keys: Iterable[str | None],
    secret: str | None,
    training: ShardSet | None,
    source: str = "",
) -> str:
    """Return one sentence on what was checked; refuse what the model has seen.

    Keys are HMACs: those of two data sets compare only if made under the same secret for the same
    source.

    Args:
        record_keys: What is to be evaluated.
        patient_keys: Of the same; None where unknown.
        secret: Fingerprint of the secret these keys were made with.
        training: The shards the model was trained on, if they are still here.
        source: Name of the evaluated source; empty for the training shards' own.

    Raises:
        UserError: A record or patient is also in the training part.
    """
    if training is None:
        return "The training shards are not here: overlap with training could not be checked."
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
    rows = training.rows("train")
    shared = []
    for name, plural, keys in (
        ("record_key", "records", record_keys),
        ("patient_key", "patients", patient_keys),
    ):
        both = set(training.index[name][rows].astype(str).tolist()) & {key for key in keys if key}
        if both:
            shared.append(f"{len(both):,} {plural}")
    if shared:
        raise UserError(
            f"{' and '.join(shared)} of the evaluated set are also in the run's training part: the "
            "numbers would say how well the model remembers. Evaluate a part it was not trained on "
            "(split=val or split=test)."
        )
    return "No evaluated record or patient is in the training part (compared by key)."

"""Canonical patient ids by the merge history, and the hash that the split draws by."""

import hashlib
from collections.abc import Iterable

import polars as pl


def canonical_patients(merges: pl.DataFrame | None) -> dict[str, str]:
    """Return the canonical id of every id in a merge history: the smallest of its group.

    Ids are compared as numbers where they are numbers. A history may chain (a into b, b into c)
    and name the survivor on either side.

    Args:
        merges: Columns `from` and `to`; None for a source without a history.
    """
    parent: dict[str, str] = {}

    def root_of(patient: str) -> str:
        path = []
        while (above := parent.setdefault(patient, patient)) != patient:
            path.append(patient)
            patient = above
        for below in path:
            parent[below] = patient
        return patient

    for first, second in merges.iter_rows() if merges is not None else ():
        roots = sorted((root_of(first), root_of(second)), key=_id_order)
        parent[roots[1]] = roots[0]
    return {patient: root_of(patient) for patient in sorted(parent)}


def _id_order(patient: str) -> tuple[bool, int, str]:
    number = patient.isascii() and patient.isdigit()
    return (not number, int(patient) if number else 0, patient)


def patient_hashes(patients: pl.Series | Iterable[str]) -> pl.Series:
    """Return the first 64 bits of the SHA-256 of each patient id.

    The hash is not secret and never leaves the catalog: ids of nine digits can be tried out.
    """
    texts = patients if isinstance(patients, pl.Series) else pl.Series(list(patients))
    sha256 = hashlib.sha256
    numbers = [
        None if text is None else int.from_bytes(sha256(text.encode()).digest()[:8])
        for text in texts.cast(pl.String).to_list()
    ]
    return pl.Series(texts.name, numbers, dtype=pl.UInt64)

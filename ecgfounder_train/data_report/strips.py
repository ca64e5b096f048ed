"""ECGs to look at: some of each frequent label, and some that were rejected. Local only."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.catalog.exclusions import points_outside
from ecgfounder_train.core.errors import RejectReason
from ecgfounder_train.figures import HtmlPage, strip_figure
from ecgfounder_train.labels.packing import unpack
from ecgfounder_train.records import EcgRecord
from ecgfounder_train.shards import SEXES, ShardSet

BANNER = "Stays on this machine: recordings of patients. Do not share this page."
PER_LABEL = 2
PER_REASON = 2
REJECTED_SHARE = 1 / 3
_LOOKED_AT = 20_000  # rows; a label rarer than one in ten thousand has no strip
_MAX_TRIES = 4
_LABELS_IN_NOTE = 3


def strips_page(
    shards: ShardSet,
    rejects: pl.DataFrame,
    read: Callable[[str], EcgRecord],
    num_strips: int,
) -> HtmlPage:
    """Return a page with at most `num_strips` strips, a third of them rejected records.

    Time and memory do not grow with the archive: samples are chosen among index rows spread evenly,
    and only what is drawn is read.

    Args:
        rejects: The ledger: record_path, record_key, reason, detail.
        read: Reads the record at a path; raises RejectedRecordError.
    """
    page = HtmlPage(
        f"ECG strips: {shards.manifest.source}",
        "Samples as they stand in the shards, and rejected records as far as they can be read.",
        BANNER,
        landscape=True,
    )
    rejected = _readable(rejects, read, int(num_strips * REJECTED_SHARE))
    labels = shards.manifest.labels
    for label, rows in _chosen(shards, num_strips - len(rejected)).items():
        page.section(labels[label])
        for row in rows:
            _draw_sample(page, shards, row, labels[label])
    if len(rejects):
        page.section("Rejected")
        counts = rejects["reason"].value_counts().sort("reason")
        page.bullets(f"{reason}: {count:,}" for reason, count in counts.iter_rows())
        page.paragraph("Reasons without a strip leave nothing to draw.", hint=True)
    for key, reason, detail, record in rejected:
        figure = strip_figure(
            record.signal,
            record.fs,
            record.lead_names,
            title=f"rejected: {reason}",
            subtitle=f"record {key}, as recorded",
            note=detail if len(detail) <= 70 else detail[:69] + "…",
        )
        page.figure(figure, f"{reason}: {detail}", f"ECG rejected as {reason}", true_scale=True)
    return page


def _chosen(shards: ShardSet, num_strips: int) -> Mapping[int, list[int]]:
    """Return index rows by label, the most frequent label first; no record twice."""
    if num_strips <= 0 or not len(shards):
        return {}
    step = max(1, -(-len(shards) // _LOOKED_AT))
    rows = np.arange(0, len(shards), step)
    looked = shards.index[rows]
    num_labels = len(shards.manifest.labels)
    positive: NDArray[np.bool_] = unpack(looked["labels"], num_labels).astype(np.bool_)
    positive &= unpack(looked["observed"], num_labels).astype(np.bool_)
    keys = looked["record_key"].tolist()
    chosen: dict[int, list[int]] = {}
    taken: set[bytes] = set()
    left = num_strips
    for label in np.argsort(-positive.sum(axis=0), kind="stable"):
        candidates = np.flatnonzero(positive[:, label])
        for place in _spread(candidates):
            if left == 0 or len(chosen.get(int(label), ())) == PER_LABEL:
                break
            if keys[place] not in taken:
                taken.add(keys[place])
                chosen.setdefault(int(label), []).append(int(rows[place]))
                left -= 1
    return chosen


def _spread(places: NDArray[np.intp]) -> list[int]:
    """Return the places in an order that begins with some far from each other."""
    step = max(1, len(places) // (PER_LABEL + 1))
    first: list[int] = places[step // 2 :: step].tolist()
    there = set(first)
    return first + [place for place in places.tolist() if place not in there]


def _draw_sample(page: HtmlPage, shards: ShardSet, row: int, label: str) -> None:
    sample = shards.read_sample(row)
    facts, manifest = sample.facts, shards.manifest
    names = [
        name
        for name, value, seen in zip(manifest.labels, *sample.labels, strict=True)
        if value and seen
    ]
    age = "" if facts["age_years"] is None else f", {facts['age_years']:.0f} years"
    sex = f", {facts['sex']}" if facts["sex"] in SEXES[1:] else ""
    start, length = int(facts["valid_start"]), int(facts["valid_num_samples"])
    signal = sample.ecg[:, start : start + length].astype(np.float64) / 1000
    more = len(names) - _LABELS_IN_NOTE
    others = "; ".join(names[:_LABELS_IN_NOTE]) + (f"; {more} more" if more > 0 else "")
    figure = strip_figure(
        signal,
        manifest.fs,
        manifest.leads,
        title=label,
        subtitle=f"record {sample.record_key}, {facts['site']}{age}{sex}",
    )
    page.figure(figure, others, f"ECG with the label {label}", true_scale=True)


def _readable(
    rejects: pl.DataFrame, read: Callable[[str], EcgRecord], num_strips: int
) -> list[tuple[str, str, str, EcgRecord]]:
    """Return key, reason, detail and record of some rejects of each reason that can be drawn."""
    found: list[tuple[str, str, str, EcgRecord]] = []
    # Who was withdrawn is not shown.
    is_excluded = pl.col("reason") == RejectReason.EXCLUDED.value
    rejects = rejects.filter(~is_excluded & ~points_outside(pl.col("record_path")))
    for reason in sorted(rejects["reason"].unique().to_list()):
        drawn = 0
        some = rejects.filter(pl.col("reason") == reason).sort("record_key").head(_MAX_TRIES)
        for path, key, _, detail in some.iter_rows():
            if drawn == PER_REASON or len(found) == num_strips:
                break
            try:
                record = read(path)
            except Exception:  # client libraries of storages raise errors of their own
                continue
            if record.signal.size:
                found.append((key, reason, detail, record))
                drawn += 1
    return found


def remove_strips(path: Path) -> None:
    """Take away the page of an earlier run: it would show records that are excluded by now."""
    path.unlink(missing_ok=True)

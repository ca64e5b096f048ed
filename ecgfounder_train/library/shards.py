"""A shard set as a Python object: records, a table, plots and loaders."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.labels import unpack
from ecgfounder_train.shards import SEXES, ShardSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ecgfounder_train.loader.shard_loader import ShardLoader

_MICROVOLT_PER_MILLIVOLT = 1000
_SHOWN_LABELS = 5


@dataclass(frozen=True, repr=False)
class ShardRecord:
    """One window of one record.

    Shape:
        signal: float32 (num_leads, num_samples) in mV at `fs` Hz, as the shards hold it.
    """

    record_key: str
    window: int
    split: str
    signal: NDArray[np.float32]
    fs: float
    leads: tuple[str, ...]
    labels: dict[str, bool | None]
    """Per label its value; None where it was not observed."""

    @property
    def positives(self) -> list[str]:
        """Names of the labels that are present."""
        return [name for name, value in self.labels.items() if value]

    def plot(self) -> "Figure":
        """Return the ECG on millimetre paper, 25 mm/s and 10 mm/mV."""
        from ecgfounder_train.figures import strip_figure

        stated = ", ".join(self.positives) or "no label present"
        return strip_figure(
            self.signal, self.fs, self.leads, f"Record {self.record_key[:8]}", stated
        )

    def __repr__(self) -> str:
        shown = ", ".join(self.positives[:_SHOWN_LABELS]) or "no label present"
        if (more := len(self.positives) - _SHOWN_LABELS) > 0:
            shown += f" and {more} more"
        return (
            f"ShardRecord({self.record_key[:8]}, {self.split}, {len(self.leads)} leads x "
            f"{self.signal.shape[1] / self.fs:g} s at {self.fs:g} Hz, {shown})"
        )


class Shards:
    """An opened shard set; `shards[i]` is a `ShardRecord`.

    Args:
        shard_set: The files and their index.
    """

    def __init__(self, shard_set: ShardSet) -> None:
        self.shard_set = shard_set

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, in the order of `targets`."""
        return tuple(self.shard_set.manifest.labels)

    @property
    def leads(self) -> tuple[str, ...]:
        """Names of the leads, in stored order."""
        return tuple(self.shard_set.manifest.leads)

    @property
    def fs(self) -> float:
        """Sampling rate in Hz."""
        return float(self.shard_set.manifest.fs)

    @property
    def counts(self) -> dict[str, int]:
        """Samples of each split."""
        ranges = {split: self.shard_set.row_ranges(split) for split in SPLITS}
        return {split: sum(map(len, parts)) for split, parts in ranges.items()}

    def loader(self, split: str = "train", batch_size: int = 64, **options: Any) -> "ShardLoader":
        """Return a `loader.shard_loader.ShardLoader`, whose options these are.

        Raises:
            UserError: An option is out of range, or the split is empty.
        """
        from ecgfounder_train.loader.shard_loader import ShardLoader

        return ShardLoader(self.shard_set, split, batch_size, **options)

    def to_frame(self) -> pl.DataFrame:
        """Return one row per sample: keys, split, sex, age, site, rate, and a column per label.

        A label is true, false, or null where it was not observed.
        """
        index, manifest = self.shard_set.index, self.shard_set.manifest
        values = unpack(index["labels"], len(manifest.labels))
        observed = unpack(index["observed"], len(manifest.labels))
        age = index["age_years"].astype(np.float64)
        frame = pl.DataFrame(
            {
                "record_key": index["record_key"].astype(str),
                "patient_key": index["patient_key"].astype(str),
                "window": index["window"].astype(np.int64),
                "split": np.array(SPLITS)[index["split"]],
                "sex": np.array(SEXES)[index["sex"]],
                "age_years": age,
                "site": np.array(manifest.sites)[index["site"]],
                "native_fs": index["native_fs"].astype(np.float64),
            }
        ).with_columns(pl.col("age_years").fill_nan(None), pl.col("sex").replace("", None))
        columns = [
            pl.Series(f"label: {name}" if name in frame.columns else name, values[:, place] > 0)
            .to_frame()
            .select(pl.when(pl.Series(observed[:, place] > 0)).then(pl.first()))
            .to_series()
            for place, name in enumerate(manifest.labels)
        ]
        return frame.hstack(columns)

    def __len__(self) -> int:
        """Return the number of samples of all splits."""
        return len(self.shard_set)

    def __getitem__(self, row: int) -> ShardRecord:
        """Return one sample, every byte compared with its checksum.

        Raises:
            IndexError: There is no such row.
            UserError: The shard is damaged there.
        """
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} is not among the {len(self):,} of {self.shard_set.folder}")
        row = int(row) % len(self)
        sample = self.shard_set.read_sample(row)
        value, observed = sample.labels
        return ShardRecord(
            sample.record_key,
            sample.window,
            SPLITS[int(self.shard_set.index[row]["split"])],
            (sample.ecg / _MICROVOLT_PER_MILLIVOLT).astype(np.float32),
            self.fs,
            self.leads,
            {
                name: bool(value[place]) if observed[place] else None
                for place, name in enumerate(self.labels)
            },
        )

    def __iter__(self) -> Iterator[ShardRecord]:
        """Yield every sample in index order."""
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        manifest = self.shard_set.manifest
        counts = ", ".join(f"{count:,} {split}" for split, count in self.counts.items())
        return (
            f"Shards({self.shard_set.folder}: {counts}; {len(self.labels)} labels, "
            f"{len(self.leads)} leads x {manifest.num_samples} samples at {self.fs:g} Hz)"
        )

    def _repr_html_(self) -> str:
        """Return the counts as a small table for a notebook."""
        rows = "".join(f"<tr><td>{key}</td><td>{value:,}</td></tr>" for key, value in self._facts())
        return f"<table><tbody>{rows}</tbody></table>"

    def _facts(self) -> Iterator[tuple[str, int]]:
        for split, count in self.counts.items():
            yield f"{split} samples", count
        yield "labels", len(self.labels)
        yield "leads", len(self.leads)
        yield "samples per lead", self.shard_set.manifest.num_samples
        yield "Hz", round(self.fs)


def open_shards(
    location: Path | str, cache_dir: Path | str | None = None, cache_bytes: float = 100e9
) -> Shards:
    """Return the shard set in a folder that `prepare` wrote, or behind a URL.

    Args:
        location: Folder, or a URL that fsspec knows.
        cache_dir: Folder for local copies of remote shards.
        cache_bytes: Most bytes of the copies.

    Raises:
        UserError: There is no shard set, or it is damaged.
    """
    from ecgfounder_train.loader import cache

    if cache_dir is None and cache.is_url(location):
        raise UserError(
            f"{location} is not on this machine. Give cache_dir=, a folder on a local disk."
        )
    return Shards(cache.open_shards(location, cache_dir, cache_bytes))

"""WebDataset streaming, for pipes and stores that can only be read sequentially.

Weaker guarantees than those of the indexed reader, in exchange for sequential reads:

* The order is approximate: shards are permuted per epoch and dealt out to the ranks, samples pass
  through a shuffle buffer. It depends on the number of ranks.
* A rank takes its share of the epoch's batches from its own shards. Where shards do not divide
  evenly, a rank that runs out begins its shards again and one with more leaves the rest: a sample
  may come twice in an epoch, or not at all.
* A resumed run continues in its epoch by reading and dropping what came before, which takes as long
  as reading it; with another number of ranks it reads samples of the epoch again.
* Gradients are means of the ranks' means, and samples are not compared with their checksum.

Validation still covers its part exactly once: every rank reads all of it and keeps its rows.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.batches import Batch, RankShape, ReadAhead, read_ahead_of
from ecgfounder_train.loader.epoch_plan import Position, num_steps, rank_slots
from ecgfounder_train.shards import ShardSet

SHUFFLE_BUFFER = 1000


@dataclass(frozen=True)
class StreamSource:
    """Where the shards of a set are streamed from.

    Args:
        shards: Manifest and index of the set; the shard files need not be there.
        template: A URL in which {name} stands for a shard's file name, such as
            "pipe:aws s3 cp s3://bucket/heedb/{name} -"; None: the set's own folder.
    """

    shards: ShardSet
    template: str | None = None

    def __post_init__(self) -> None:
        if self.template is not None and "{name}" not in self.template:
            raise UserError(
                f"data.stream={self.template!r} has no place for a shard's file name. Write "
                "{name} there, as in 'pipe:cat /mnt/shards/{name}'."
            )

    def urls(self, split: str) -> list[str]:
        """Return the shards of a split in the manifest's order."""
        template = self.template or f"{self.shards.folder}/{{name}}"
        entries = self.shards.manifest.shards
        return [
            template.replace("{name}", entry.name)
            for entry in entries
            if entry.split == split and entry.num_samples
        ]

    def samples(self, urls: list[str], shuffle: random.Random | None) -> Iterator[dict[str, Any]]:
        """Yield the decoded samples of some shards.

        Raises:
            UserError: A shard cannot be read to its end, or a sample lacks a part.
        """
        import webdataset

        stream = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        if shuffle is not None:
            stream = stream.shuffle(SHUFFLE_BUFFER, rng=shuffle)
        try:
            for sample in stream.decode():
                yield {key: sample[key] for key in ("ecg.npy", "stats.npy", "labels.npy", "json")}
        except Exception as error:
            # tar, pipe, npy and JSON each fail in their own way.
            raise UserError(
                f"The stream of shards broke: {type(error).__name__}: {error}. Check that the "
                "command of data.stream works on this machine and that the shards are whole "
                "(scripts/verify.py), then run the same command again."
            ) from error


class StreamBatches:
    """Micro-batches of one rank from a position on; see the module for what they promise.

    Args:
        source: Where the shards are streamed from.
        num_samples: Samples of the training split.
        seed: The run's seed.
        shape: How a global batch is divided.
        start: Where to begin.
        until_samples: Stop with the first global batch that reaches this many samples seen.
        read_ahead: How far ahead batches are prepared; at most one thread is used.

    Raises:
        UserError: There are fewer shards than ranks.
    """

    def __init__(
        self,
        source: StreamSource,
        num_samples: int,
        seed: int,
        shape: RankShape,
        start: Position,
        until_samples: int,
        read_ahead: ReadAhead | None = None,
    ) -> None:
        self.source = source
        self.num_samples = num_samples
        self.seed = seed
        self.shape = shape
        self.start = start
        self.read_ahead = _one_thread(read_ahead)
        self.num_steps = num_steps(start, until_samples, num_samples, shape.global_batch_size)
        self.urls = source.urls("train")
        if len(self.urls) < shape.world_size:
            raise UserError(
                f"data.reader=webdataset gives each rank shards of its own, but there are "
                f"{len(self.urls)} for {shape.world_size} ranks. Use data.reader=indexed."
            )

    def __len__(self) -> int:
        return self.num_steps * self.shape.accumulate

    def __iter__(self) -> Iterator[Batch]:
        return read_ahead_of(lambda tasks, _: self._batches(), lambda: iter(()), self.read_ahead)

    def _batches(self) -> Iterator[Batch]:
        shape, position, epoch = self.shape, self.start, -1
        samples: Iterator[dict[str, Any]] = iter(())
        for _ in range(self.num_steps):
            if position.epoch != epoch:
                epoch = position.epoch
                done = position.slots // shape.world_size
                samples = islice(self._endless(epoch), done, None)
            for micro in range(shape.accumulate):
                slots = rank_slots(
                    position.slots, shape.rank, shape.world_size, shape.batch_size_per_rank, micro
                )
                batch = _collate(list(islice(samples, len(slots))), len(slots))
                batch["slots"], batch["epoch"] = slots, epoch
                batch["loss_denominator"] = max(float(batch["observed"].sum()), 1.0)
                yield batch
            position = position.advanced(shape.global_batch_size, self.num_samples)

    def _endless(self, epoch: int) -> Iterator[dict[str, Any]]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.urls))
        mine = [self.urls[place] for place in order[self.shape.rank :: self.shape.world_size]]
        shuffle = random.Random(f"{self.seed}:{epoch}:{self.shape.rank}")
        while True:
            empty = True
            for sample in self.source.samples(mine, shuffle):
                empty = False
                yield sample
            if empty:
                raise UserError(f"The stream gives no samples from {len(mine)} shards.")


class StreamEvaluation:
    """All samples of a split once, the same number of batches on every rank.

    Args:
        source: Where the shards are streamed from.
        split: The split.
        num_samples: Its samples, as the manifest says.
        shape: How many samples a rank holds, and how many ranks there are.
        read_ahead: How far ahead batches are prepared; at most one thread is used.
    """

    def __init__(
        self,
        source: StreamSource,
        split: str,
        num_samples: int,
        shape: RankShape,
        read_ahead: ReadAhead | None = None,
    ) -> None:
        self.source = source
        self.split = split
        self.num_samples = num_samples
        self.shape = shape
        self.read_ahead = _one_thread(read_ahead)

    def __len__(self) -> int:
        return -(-self.num_samples // (self.shape.batch_size_per_rank * self.shape.world_size))

    def __iter__(self) -> Iterator[Batch]:
        return read_ahead_of(lambda tasks, _: self._batches(), lambda: iter(()), self.read_ahead)

    def _batches(self) -> Iterator[Batch]:
        size, count = self.shape.batch_size_per_rank, 0
        samples = self.source.samples(self.source.urls(self.split), None)
        template: dict[str, Any] | None = None
        for _ in range(len(self)):
            everyone = list(islice(samples, size * self.shape.world_size))
            count += len(everyone)
            if everyone:
                template = everyone[0]
            if template is None:
                break
            first = self.shape.rank * size
            yield _collate(everyone[first : first + size], size, template)
        if count != self.num_samples or next(samples, None) is not None:
            raise UserError(
                f"The stream of {self.split} shards holds {count:,} samples where the manifest "
                f"says {self.num_samples:,}. Check data.stream."
            )


def _one_thread(read_ahead: ReadAhead | None) -> ReadAhead:
    wanted = read_ahead or ReadAhead()
    # A stream has one end; a second thread could only wait for the first.
    return ReadAhead(min(wanted.num_workers, 1), wanted.depth)


def _collate(
    samples: list[dict[str, Any]], size: int, template: dict[str, Any] | None = None
) -> Batch:
    """Return a batch like the indexed reader's, with empty rows behind the samples."""
    empty = size - len(samples)
    some = template or samples[0]

    def stacked(key: str) -> np.ndarray[Any, Any]:
        like = np.zeros_like(some[key])
        return np.stack([sample[key] for sample in samples] + [like] * empty)

    def fact(key: str) -> torch.Tensor:
        return torch.tensor([sample["json"][key] for sample in samples] + [0] * empty)

    labels = stacked("labels.npy")
    present = torch.arange(size) < len(samples)
    return {
        "ecg": torch.from_numpy(stacked("ecg.npy")),
        "stats": torch.from_numpy(stacked("stats.npy")),
        "valid_start": fact("valid_start"),
        "valid_num_samples": fact("valid_num_samples"),
        "targets": torch.from_numpy(labels[:, 0].copy()),
        "observed": torch.from_numpy(labels[:, 1].copy()),
        "present": present,
        # A stream does not know its samples' rows in the index.
        "rows": torch.full((size,), -1),
        "quarantined": np.empty(0, np.int64),
    }

"""Linear probe of frozen features on another data set, measured during the run.

At a validation the network that validation looks at (the weight average, if there is one) computes
the features of some windows of the other set; a logistic regression per label is fitted on its
train part and scored on its val part. Nothing of it goes back into training: no random number is
drawn, and best.ckpt is chosen by the run's own validation. What it is scored on must not be trained
on: records and patients are compared by key.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import EvaluationBatches, SampleReader
from ecgfounder_train.loader.batches import RankShape, ReadAhead
from ecgfounder_train.loader.cache import is_url, open_shards
from ecgfounder_train.loader.epoch_plan import PADDING
from ecgfounder_train.loader.features import answers_of, at_most, frozen_features
from ecgfounder_train.loader.rows import IntArray
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.metrics import macro, ranking_metrics
from ecgfounder_train.models import Net1D
from ecgfounder_train.models.linear_readout import fit_readout
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.settings.training import DataSettings, ProbeSettings
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.shards.overlap import check_overlap

COLUMNS = ("probe/macro_auroc", "probe/num_labels")
"""What a probe adds to metrics.csv; empty where it was not due."""
PROBED_SPLITS = ("train", "val")


@dataclass(frozen=True)
class Ranks:
    """This rank among the others, and where it computes."""

    rank: int
    world_size: int
    device: torch.device


class ExternalProbe:
    """A data set that a run's features are tried on.

    Args:
        shards: The other set.
        settings: How often, and on how much of it.
        trained_on: The run's own shards, whose signal profile the features belong to.
        lead_choice: What the network sees; see `BatchTransform`.
        batch_size: Windows per forward pass of a rank.

    Attributes:
        overlap: Summary of the records and patients that are also trained on.

    Raises:
        UserError: The sets do not go together, a part is empty, or what is scored is trained on.
    """

    def __init__(
        self,
        shards: ShardSet,
        settings: ProbeSettings,
        trained_on: ShardSet,
        lead_choice: str,
        batch_size: int,
    ) -> None:
        own, other = trained_on.manifest, shards.manifest
        if own.fingerprints["signal_profile"] != other.fingerprints["signal_profile"]:
            raise UserError(
                f"probe.shards={settings.shards} were made with another signal profile "
                f"({other.signal.get('name')}, {other.signal.get('fs')} Hz) than the shards that "
                f"are trained on ({own.signal.get('name')}, {own.signal.get('fs')} Hz). Prepare "
                "them with the same signal=."
            )
        self.shards = shards
        self.settings = settings
        self.batch_size = batch_size
        self.transform = BatchTransform(
            other.leads, SignalProfile.from_config(other.signal).load_normalisation, lead_choice
        )
        self.rows = {
            split: at_most(shards.rows(split), settings.max_records) for split in PROBED_SPLITS
        }
        for split, rows in self.rows.items():
            if not len(rows):
                raise UserError(
                    f"probe.shards={settings.shards} hold no {split} samples. Prepare them with a "
                    "rule that gives train and val records."
                )
        # The whole split, also where only some is scored: a refusal does not depend on the draw.
        scored = shards.index[shards.rows("val")]
        self.overlap = check_overlap(
            scored["record_key"].astype(str).tolist(),
            scored["patient_key"].astype(str).tolist(),
            other.fingerprints["secret"],
            trained_on,
            other.source,
            what=f"the val part of probe.shards={settings.shards}",
            remedy="Probe a set of other patients, or one with the same split, whose val part is "
            "not trained on; probe.shards=null trains without a probe.",
        )

    def __str__(self) -> str:
        """Return a summary of what is probed."""
        train, val = (len(self.rows[split]) for split in PROBED_SPLITS)
        return (
            f"Probe on {self.shards.manifest.source}: fitted on {train:,} windows, scored on "
            f"{val:,}. {self.overlap}"
        )

    @classmethod
    def open(
        cls, settings: ProbeSettings, data: DataSettings, trained_on: ShardSet, world_size: int
    ) -> "ExternalProbe | None":
        """Return the probe that the settings ask for, None where they ask for none."""
        if settings.shards is None:
            return None
        # Local shards need no copies, which would push out those of the training set.
        cache = data.cache_dir if is_url(settings.shards) else None
        shards = open_shards(settings.shards, cache, data.cache_bytes)
        return cls(shards, settings, trained_on, data.lead_choice, data.per_rank(world_size))

    def is_due(self, number: int) -> bool:
        """Return whether the validation of this number, counted from 1, comes with a probe."""
        return number % self.settings.every_validations == 0

    @torch.no_grad()
    def measure(
        self, model: torch.nn.Module, ranks: Ranks, precision: AbstractContextManager[Any]
    ) -> dict[str, float]:
        """Return the columns of metrics.csv; the same on every rank, all of which must call it.

        Args:
            model: Whose features are tried; in evaluation mode.
            ranks: The features are computed by all, the readout is fitted by the first.
            precision: Context of the forward pass.
        """
        assert isinstance(model, Net1D) and not model.training
        with precision:
            found = {split: self._features(model, rows, ranks) for split, rows in self.rows.items()}
        values = torch.full((2,), float("nan"), dtype=torch.float64)
        if ranks.rank == 0:
            values = torch.tensor(self._score(found), dtype=torch.float64)
        if ranks.world_size > 1:
            shown = values.to(ranks.device)
            torch.distributed.broadcast(shown, src=0)
            values = shown.cpu()
        return dict(zip(COLUMNS, (float(values[0]), int(values[1])), strict=True))

    def _features(self, model: Net1D, rows: IntArray, ranks: Ranks) -> tuple[IntArray, Tensor]:
        """Return index rows in order and their features (n, C), those of all ranks.

        A sample that cannot be read is left out with a warning: a probe ends no run.
        """
        batches = EvaluationBatches(
            SampleReader(self.shards, on_bad_sample="quarantine"),
            rows,
            RankShape(self.batch_size, 1, ranks.rank, ranks.world_size),
            ReadAhead(pin_memory=ranks.device.type == "cuda"),
        )
        found = list(
            frozen_features(
                batches, self.transform, lambda x: model.forward_features(x)[1], ranks.device
            )
        )
        mine = torch.cat([part for part, _ in found]), torch.cat([part for _, part in found])
        if ranks.world_size > 1:
            # Every rank has the same number of batches, the last ones padded.
            for_all = [[torch.empty_like(part) for _ in range(ranks.world_size)] for part in mine]
            for part, everyone in zip(mine, for_all, strict=True):
                torch.distributed.all_gather(everyone, part)
            mine = torch.cat(for_all[0]), torch.cat(for_all[1])
        where = mine[0].cpu().numpy()
        order = np.argsort(where, kind="stable")
        order = order[where[order] != PADDING]
        return where[order], mine[1].cpu()[order]

    def _score(self, found: Mapping[str, tuple[IntArray, Tensor]]) -> tuple[float, float]:
        """Return the macro AUROC of the readout on the val split, and of how many labels."""
        (train_rows, train), (val_rows, val) = (found[split] for split in PROBED_SPLITS)
        if not len(train) or not train.isfinite().all() or not val.isfinite().all():
            return float("nan"), 0.0
        answers = answers_of(self.shards, train_rows)
        logits = fit_readout(train, answers, (self.settings.penalty,))(val).numpy()
        truth = answers_of(self.shards, val_rows).numpy()
        observed = ~np.isnan(truth)
        scored = ranking_metrics(logits, (truth == 1).astype(np.uint8), observed.astype(np.uint8))
        # Without both values in training the readout is a constant.
        learnt = ((answers == 1).any(0) & (answers == 0).any(0)).numpy()
        mean_area = macro(scored.auroc[learnt], scored.num_positives[learnt])
        return mean_area.value, float(mean_area.num_labels)

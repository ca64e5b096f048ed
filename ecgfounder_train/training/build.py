"""Network, loss, order of the data and metadata of a run, from its config and its shards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.labels.groups import in_group
from ecgfounder_train.loader.datamodule import PretrainDataModule
from ecgfounder_train.loader.epoch_plan import EpochPlan
from ecgfounder_train.loader.order import create_plan
from ecgfounder_train.loader.patients import patient_rows
from ecgfounder_train.loader.rows import Rows, SplitRows
from ecgfounder_train.loader.stream import StreamSource
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import create_model
from ecgfounder_train.models.families import resolve_model
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.settings.training import DataSettings
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.config import RunConfig
from ecgfounder_train.training.ema import WeightAverage
from ecgfounder_train.training.module import PretrainModule
from ecgfounder_train.training.probe import ExternalProbe
from ecgfounder_train.training.run_state import RunMetadata
from ecgfounder_train.training.split_weights import create_split_loss
from ecgfounder_train.training.trainer import hardware, versions


@dataclass(frozen=True)
class DataOrder:
    """Which samples are trained on, and in which order.

    Attributes:
        rows: Index rows that are trained on.
        plan: Their order.
        chosen: The same rows if they are a share of the patients; None for the whole split.
        fingerprints: Of the share and of the order; empty for the whole split in plain order.
    """

    rows: Rows
    plan: EpochPlan
    chosen: Any
    fingerprints: Mapping[str, str]

    @classmethod
    def of(cls, shards: ShardSet, data: DataSettings, seed: int) -> "DataOrder":
        """Return the order of a shard set's training split."""
        chosen, fingerprints = None, {}
        if data.patient_fraction != 1.0:
            chosen = patient_rows(shards, data.patient_fraction, data.patient_seed)
            fingerprints["patients"] = fingerprint([data.patient_fraction, data.patient_seed])
        rows: Rows = SplitRows.of(shards, "train") if chosen is None else chosen
        plan = create_plan(
            shards,
            rows,
            seed,
            order=data.order,
            block_shards=data.block_shards,
            global_batch_size=data.global_batch_size,
            drop_last=data.last_batch == "drop",
        )
        name = "stream" if data.reader == "webdataset" else plan.name
        if name != "global":
            fingerprints["order"] = name
        return cls(rows, plan, chosen, fingerprints)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch; with last_batch=drop those of its whole batches."""
        return self.plan.num_slots


def create_datamodule(
    config: RunConfig, shards: ShardSet, order: DataOrder, total_samples: int
) -> PretrainDataModule:
    """Return the data of a run.

    Args:
        config: Batch sizes and reader.
        shards: What is trained on.
        order: In which order.
        total_samples: Where the run ends.
    """
    data = config.data
    return PretrainDataModule(
        shards,
        order.plan,
        order.rows,
        global_batch_size=data.global_batch_size,
        batch_size_per_rank=config.batch_size_per_rank,
        validate_every_samples=config.budget.validate_every(order.num_samples),
        total_samples=total_samples,
        checksum=data.checksum,
        on_bad_sample=data.on_bad_sample,
        num_workers=data.num_workers,
        stream=StreamSource(shards, data.stream) if data.reader == "webdataset" else None,
    )


def create_module(
    config: RunConfig, shards: ShardSet, order: DataOrder
) -> tuple[PretrainModule, RunMetadata]:
    """Return the module for these shards, and the metadata of its checkpoints."""
    manifest = shards.manifest
    data, seed = config.data, config.numbers.seed
    profile = SignalProfile.from_config(manifest.signal)
    transform = BatchTransform(
        manifest.leads,
        profile.load_normalisation,
        data.lead_choice,
        config.augmentation,
        seed,
        profile.fs,
    )
    # Stored with the run as solved: consumers have no families.
    model_config = resolve_model(config.model, transform.num_leads, len(manifest.labels))
    name = str(model_config.pop("name"))
    # A matter of this machine: neither the checkpoint's consumers nor a resume depend on it.
    kernels = str(model_config.pop("kernels", "auto"))
    model = create_model(
        name, transform.num_leads, len(manifest.labels), kernels=kernels, **model_config
    )
    model.recompute = config.trainer.recompute
    metadata = RunMetadata(
        spec={
            "model": {"name": name, **model_config},
            "num_leads": transform.num_leads,
            "lead_choice": data.lead_choice,
            "labels": list(manifest.labels),
            "vocabulary": dict(manifest.vocabulary),
            "signal": dict(manifest.signal),
        },
        config=config.without_paths(),
        fingerprints={
            "vocabulary": manifest.fingerprints["vocabulary"],
            "signal_profile": manifest.fingerprints["signal_profile"],
            "split": manifest.fingerprints["split"],
            "data": manifest.fingerprint,
            "model": fingerprint([name, model_config, transform.num_leads]),
            **order.fingerprints,
        },
        versions=versions(),
        hardware=hardware(config.trainer),
    )
    half_life = config.ema.half_life_samples
    module = PretrainModule(
        model,
        create_split_loss(config.loss, shards, order.chosen),
        transform,
        config.optimizer,
        config.schedule,
        num_samples=order.num_samples,
        total_samples=config.budget.total_samples(order.num_samples),
        global_batch_size=data.global_batch_size,
        num_labels=len(manifest.labels),
        seed=seed,
        average=WeightAverage(model, half_life) if half_life else None,
        monitored=in_group(
            manifest.vocabulary["groups"], config.budget.validate_group, "budget.validate_group"
        )
        .nonzero()[0]
        .tolist(),
        faults=config.faults,
        probe=ExternalProbe.open(config.probe, data, shards, config.trainer.world_size),
    )
    return module, metadata

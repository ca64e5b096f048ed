"""The settings of a training run, parsed once: below this module there is no raw config.

`plain` is kept beside the typed sections for what stores it as it is: config.yaml, starts.jsonl,
the checkpoint and the loggers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.ranks import Launch, require_launch
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.settings.training import (
    Augmentation,
    Budget,
    CheckpointSettings,
    CsvLogger,
    DataSettings,
    EmaSettings,
    FaultSettings,
    OptimizerSettings,
    ProbeSettings,
    ResumeSettings,
    RunSettings,
    TrainerSettings,
    WandbLogger,
)
from ecgfounder_train.training.loggers import logger_settings
from ecgfounder_train.training.run_state import Measure
from ecgfounder_train.training.schedules import Schedule, create_schedule
from ecgfounder_train.training.trainer import on_this_machine

KEYS_WITH_PATHS = ("paths", "shards", "resume", "hydra")
"""Config keys that hold paths; they stay in the run directory."""


@dataclass(frozen=True)
class RunConfig:
    """The config of `pretrain.yaml`, or of fine-tuning in the same form.

    Attributes:
        run: The run's directory.
        shards: Folder or URL of the shards.
        expect_split: Name or fingerprint of the split they must have; None takes any.
        overwrite: Whether a run of this name is moved aside.
        model: The `model` section, for `models.families`; empty in fine-tuning.
        loss: The `loss` section, for `losses`.
        plain: The whole config as plain containers.
    """

    run: RunDirectory
    shards: str
    expect_split: str | None
    overwrite: bool
    numbers: RunSettings
    resume: ResumeSettings
    trainer: TrainerSettings
    data: DataSettings
    budget: Budget
    checkpoint: CheckpointSettings
    faults: FaultSettings
    ema: EmaSettings
    optimizer: OptimizerSettings
    schedule: Schedule
    augmentation: Augmentation
    probe: ProbeSettings
    logger: CsvLogger | WandbLogger
    model: Mapping[str, Any]
    loss: Mapping[str, Any]
    plain: Mapping[str, Any]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RunConfig":
        """Return the settings of a composed config; keys of other verbs are left alone.

        Raises:
            UserError: If the configuration is invalid.
        """
        expected = config.get("expect_split")
        parsed = cls(
            run=RunDirectory.of(config["paths"]["runs"], config["run"]),
            shards=str(config["shards"]),
            expect_split=None if expected is None else str(expected),
            overwrite=bool(config.get("overwrite", False)),
            numbers=RunSettings.from_config(config),
            resume=ResumeSettings.from_config(config["resume"]),
            trainer=on_this_machine(TrainerSettings.from_config(config["trainer"])),
            data=DataSettings.from_config(config["data"]),
            budget=Budget.from_config(config["budget"]),
            checkpoint=CheckpointSettings.from_config(config["checkpoint"]),
            faults=FaultSettings.from_config(config.get("faults", {})),
            ema=EmaSettings.from_config(config["ema"]),
            optimizer=OptimizerSettings.from_config(config["optimizer"]),
            schedule=create_schedule(config["schedule"]),
            augmentation=Augmentation.from_config(config["augmentation"]),
            probe=ProbeSettings.from_config(config.get("probe") or {}),
            logger=logger_settings(config["logger"]),
            model=config.get("model") or {},
            loss=config["loss"],
            plain=config,
        )
        parsed._check_batches()
        return parsed

    def require_launch(self) -> Launch:
        """Return who this process is in a job of these ranks.

        Raises:
            UserError: The environment contradicts the settings.
        """
        return require_launch(self.trainer.devices, self.trainer.num_nodes)

    @property
    def batch_size_per_rank(self) -> int:
        """Samples of a micro-batch on each rank."""
        return self.data.per_rank(self.trainer.world_size)

    @property
    def accumulate(self) -> int:
        """Micro-batches per optimizer step."""
        return self.data.global_batch_size // (self.batch_size_per_rank * self.trainer.world_size)

    def measure(self, data_fingerprint: str) -> Measure:
        """Return what validations of this run measure."""
        group = self.budget.validate_group
        return Measure.of(self.checkpoint.monitor, self.loss, group, data_fingerprint)

    def without_paths(self) -> dict[str, Any]:
        """Return the config as checkpoints and loggers may hold it."""
        kept = {key: value for key, value in self.plain.items() if key not in KEYS_WITH_PATHS}
        if "probe" in kept:
            kept["probe"] = dict(kept["probe"]) | {"shards": None}
        return kept | {"data": dict(self.plain["data"]) | {"cache_dir": None, "stream": None}}

    def _check_batches(self) -> None:
        per_rank = self.batch_size_per_rank
        if self.augmentation.mixup and per_rank % 2:
            raise UserError(
                f"augmentation.mixup mixes pairs, but each rank holds {per_rank} samples. Choose "
                "an even data.batch_size_per_rank (and data.global_batch_size), or "
                "augmentation.mixup=0."
            )

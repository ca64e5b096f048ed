"""Numbers of a run (budget, batch sizes, ...), checked when they are read."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.settings import parse_settings


@dataclass(frozen=True)
class RunSettings:
    """The numbers that stand at the top of the config.

    Args:
        seed: Of weights, order of the data, augmentation and dropout.
        log_every_steps: Optimizer steps per row of metrics.csv.
        gradient_clip_norm: Largest total gradient norm; None: no clipping.
    """

    seed: int
    log_every_steps: int
    gradient_clip_norm: float | None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed} is not between 0 and 2^63 - 1.")
        if self.log_every_steps < 1:
            raise UserError(f"log_every_steps={self.log_every_steps} must be at least 1.")
        if self.gradient_clip_norm is not None and self.gradient_clip_norm <= 0:
            raise UserError(
                f"gradient_clip_norm={self.gradient_clip_norm} must be above 0, or null."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "RunSettings":
        """Return the settings of a whole config, whose other keys are left alone."""
        return parse_settings(cls, {item.name: config[item.name] for item in fields(cls)}, "")


@dataclass(frozen=True)
class ResumeSettings:
    """Where a start begins.

    Args:
        checkpoint: `auto` (the newest whole checkpoint of the run, if any), `none` (a new run
            only), or a path: where a new run begins.
        allow: Keys that may differ from the settings the run was started with.
    """

    checkpoint: str = "auto"
    allow: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ResumeSettings":
        """Return the settings of a config's `resume` section."""
        allow = config.get("allow") or ()
        allow = (allow,) if isinstance(allow, str) else tuple(map(str, allow))
        return parse_settings(cls, {**config, "allow": allow}, "resume")


@dataclass(frozen=True)
class EmaSettings:
    """The weight average.

    Args:
        half_life_samples: Samples after which half of it is forgotten; None: no average.
    """

    half_life_samples: float | None = None

    def __post_init__(self) -> None:
        if self.half_life_samples is not None and self.half_life_samples <= 0:
            raise UserError(
                f"ema.half_life_samples={self.half_life_samples} must be above 0, or null."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "EmaSettings":
        """Return the settings of a config's `ema` section."""
        return parse_settings(cls, config, "ema")


@dataclass(frozen=True)
class Budget:
    """How long to train and how often to look.

    Args:
        max_epochs: Passes over the training split.
        max_samples: Samples instead of passes; wins where both are given.
        validate_every_epochs: Distance of validations in passes.
        validate_every_samples: The same in samples; wins where both are given.
        validate_group: Validation's macro AUROC covers this group of the vocabulary's labels;
            None: all labels.
        patience: Validations without a better `checkpoint.monitor` after which training ends;
            None: the whole budget.
    """

    max_epochs: float = 20.0
    max_samples: int | None = None
    validate_every_epochs: float = 1.0
    validate_every_samples: int | None = None
    validate_group: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and value <= 0:
                raise UserError(f"budget.{name}={value} must be above 0.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Budget":
        """Return the budget of a config's `budget` section."""
        return parse_settings(cls, config, "budget")

    def total_samples(self, num_samples: int) -> int:
        """Return the budget in samples for a training split of `num_samples`."""
        return self.max_samples or max(round(self.max_epochs * num_samples), 1)

    def validate_every(self, num_samples: int) -> int:
        """Return the distance of validations in samples."""
        return self.validate_every_samples or max(
            round(self.validate_every_epochs * num_samples), 1
        )


_CHOICES = {
    "reader": ("indexed", "webdataset"),
    "last_batch": ("pad", "drop"),
    "order": ("auto", "global", "shard_blocks"),
    "on_bad_sample": ("stop", "quarantine"),
}


@dataclass(frozen=True)
class DataSettings:
    """How batches are made.

    Args:
        global_batch_size: Samples between optimizer steps over all ranks.
        batch_size_per_rank: Samples a rank holds at once; None: its whole share. Smaller values
            save memory by accumulating gradients and change no result but rounding.
        checksum: Check every sample read against the index.
        reader: `indexed`, or `webdataset`: a stream, with weaker promises; see `loader.stream`.
        stream: URL or pipe:COMMAND with {name} for a shard's file name; None: the shards' folder.
        num_workers: Threads that read ahead on each rank; 0 reads when a batch is asked for.
        last_batch: `pad` fills an epoch's last global batch with empty rows; `drop` leaves out what
            is behind the last whole one, in every epoch something else.
        order: `global` shuffles the whole split, `shard_blocks` some shards at a time; `auto` is
            `global` unless the shards are cached and do not fit.
        block_shards: Shards that `shard_blocks` shuffles jointly; None: a third of the cache.
        cache_dir: Folder on a local disk for copies of shards; None: read where they lie.
        cache_bytes: Most bytes the copies may take.
        on_bad_sample: `stop`, or `quarantine`: its slot stays empty and is counted.
        lead_choice: Which leads the network sees; see `loader.transforms`.
        patient_fraction: Share of the training patients; see `loader.patients`.
        patient_seed: Another seed draws another share.
    """

    global_batch_size: int = 1024
    batch_size_per_rank: int | None = None
    checksum: bool = True
    reader: str = "indexed"
    stream: str | None = None
    num_workers: int = 1
    last_batch: str = "pad"
    order: str = "auto"
    block_shards: int | None = None
    cache_dir: str | None = None
    cache_bytes: float = 100e9
    on_bad_sample: str = "stop"
    lead_choice: str = "all"
    patient_fraction: float = 1.0
    patient_seed: int = 0

    def __post_init__(self) -> None:
        for name, valid in _CHOICES.items():
            value = getattr(self, name)
            if value not in valid:
                raise UserError(f"data.{name}={value!r} is unknown." + did_you_mean(value, valid))
        if self.reader == "webdataset":
            self._check_stream()
        elif self.stream is not None:
            raise UserError("data.stream is read by data.reader=webdataset only.")
        if not 0 <= self.num_workers <= 64:
            raise UserError(f"data.num_workers={self.num_workers} is not between 0 and 64.")
        if (self.block_shards or 1) < 1 or self.cache_bytes <= 0:
            raise UserError("data.block_shards must be at least 1 and data.cache_bytes above 0.")
        if not 0 < self.patient_fraction <= 1:
            raise UserError(
                f"data.patient_fraction={self.patient_fraction} is not above 0 and at most 1."
            )
        if not 0 <= self.patient_seed < 2**63:
            raise UserError(f"data.patient_seed={self.patient_seed} is not between 0 and 2^63 - 1.")
        if self.global_batch_size < 1 or (self.batch_size_per_rank or 1) < 1:
            raise UserError("data.global_batch_size and batch_size_per_rank must be at least 1.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "DataSettings":
        """Return the settings of a config's `data` section."""
        return parse_settings(cls, config, "data")

    def _check_stream(self) -> None:
        """Raise for what a stream cannot do.

        Raises:
            UserError: Names the key and the reason.
        """
        refused = {
            "order=shard_blocks": self.order == "shard_blocks",
            "cache_dir": self.cache_dir is not None,
            "last_batch=drop": self.last_batch == "drop",
            "on_bad_sample=quarantine": self.on_bad_sample == "quarantine",
            "patient_fraction": self.patient_fraction != 1,
        }
        if asked := [name for name, is_asked in refused.items() if is_asked]:
            raise UserError(
                f"data.reader=webdataset reads shards from end to end and cannot follow data."
                f"{', data.'.join(asked)}. Leave that out, or use data.reader=indexed."
            )

    def per_rank(self, world_size: int) -> int:
        """Return the samples of a micro-batch on each of `world_size` ranks.

        Raises:
            UserError: The sizes do not divide.
        """
        per_rank = self.batch_size_per_rank or self.global_batch_size // world_size
        if per_rank < 1 or self.global_batch_size % (per_rank * world_size):
            raise UserError(
                f"data.global_batch_size={self.global_batch_size} cannot be divided over "
                f"{world_size} ranks with data.batch_size_per_rank={per_rank}. Choose a multiple "
                f"of {max(per_rank, 1) * world_size}."
            )
        return per_rank

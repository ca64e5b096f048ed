"""Sections of pretraining and fine-tuning: run, data, budget, trainer, optimizer, ..."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ecgfounder_train.core.commands import DEFAULT_PATHS
from ecgfounder_train.core.config import LARGEST_SEED, Section, section, setting
from ecgfounder_train.core.errors import UserError

MONITORS = {"val/macro_auroc": "max", "val/loss": "min"}
"""Columns of metrics.csv that may decide about best.ckpt, and which direction is better."""
LEAD_CHOICES = {
    "all": "",
    "lead_I": "",
    "published": "lead I, half of the time one of aVL, -aVR, II, -III, aVF, -aVF",
    "uniform": "evenly one of the seven",
}


@dataclass(frozen=True)
class RunSettings(Section, name=""):
    """Seed, logging and gradient clipping of a run."""

    seed: int = setting(
        0, "of weights, order of the data, augmentation, dropout", at_least=0, at_most=LARGEST_SEED
    )
    log_every_steps: int = setting(20, "optimizer steps per row of metrics.csv", at_least=1)
    gradient_clip_norm: float | None = setting(
        None, "largest total gradient norm; null: no clipping", above=0
    )


@dataclass(frozen=True)
class ResumeSettings(Section, name="resume"):
    """Where a start begins."""

    checkpoint: str = setting(
        "auto",
        "resume=auto: newest whole checkpoint if any | none: a new run only | PATH: start of a new "
        "run",
    )
    allow: Sequence[str] | str = setting(
        [], "keys that may differ from the run's settings, such as [optimizer.lr]"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        allow = (self.allow,) if isinstance(self.allow, str) else tuple(map(str, self.allow))
        object.__setattr__(self, "allow", allow)


@dataclass(frozen=True)
class EmaSettings(Section, name="ema"):
    """The exponential moving average of the weights."""

    half_life_samples: float | None = setting(
        None, "half-life of the weight average, in samples; null: no average", above=0
    )


@dataclass(frozen=True)
class Budget(Section, name="budget"):
    """Length of the training and distance of validations."""

    max_epochs: float = setting(
        20.0, "passes over the training split", above=0, source="ECGFounder: at most 20"
    )
    max_samples: int | None = setting(
        None, "samples instead of passes; wins where both are given", above=0
    )
    validate_every_epochs: float = setting(1.0, "passes between validations", above=0)
    validate_every_samples: int | None = setting(
        None, "samples between validations; wins where both are given", above=0
    )
    validate_group: str | None = setting(
        None, "val/macro_auroc covers this group of the vocabulary; null: all labels"
    )
    patience: int | None = setting(
        None,
        "early stopping: validations without a better checkpoint.monitor; null: no early stopping",
        above=0,
    )

    def total_samples(self, num_samples: int) -> int:
        """Return the budget in samples for a training split of `num_samples`."""
        return self.max_samples or max(round(self.max_epochs * num_samples), 1)

    def validate_every(self, num_samples: int) -> int:
        """Return the distance of validations in samples."""
        return self.validate_every_samples or max(
            round(self.validate_every_epochs * num_samples), 1
        )


@dataclass(frozen=True)
class DataSettings(Section, name="data"):
    """How batches are made from shards."""

    global_batch_size: int = setting(
        1024,
        "samples between optimizer steps over all ranks",
        at_least=1,
        source="ECGFounder: reported",
    )
    batch_size_per_rank: int | None = setting(
        None, "samples a rank holds at once; null: its whole share, else accumulate", at_least=1
    )
    checksum: bool = setting(True, "check every sample read against the index")
    reader: str = setting(
        "indexed",
        choices={
            "indexed": "",
            "webdataset": "a stream from pipes, with weaker promises: see docs/training/loader.md",
        },
    )
    stream: str | None = setting(
        None,
        "webdataset: URL or pipe:COMMAND with {name} for a shard; null: the shards' folder",
    )
    num_workers: int = setting(
        1,
        "threads that read ahead on each rank; 0 reads when a batch is requested",
        at_least=0,
        at_most=64,
    )
    last_batch: str = setting(
        "pad",
        choices={"pad": "empty rows fill an epoch's last global batch", "drop": "leave it out"},
    )
    order: str = setting(
        "auto",
        choices={
            "global": "shuffle the whole split",
            "shard_blocks": "shuffle blocks of shards, for caches",
            "auto": "global where all fits",
        },
    )
    block_shards: int | None = setting(
        None, "shards shuffled jointly by shard_blocks; null: a third of the cache", at_least=1
    )
    cache_dir: str | None = setting(
        None, "folder on a local disk for copies of remote or slow shards; null: no copies"
    )
    cache_bytes: float = setting(
        100e9, "largest size of the copies; the index comes on top", unit="bytes", above=0
    )
    on_bad_sample: str = setting(
        "stop", choices={"stop": "", "quarantine": "its slot stays empty and is counted"}
    )
    lead_choice: str = setting(
        "all", "single-lead training from 12-lead shards", choices=LEAD_CHOICES
    )
    patient_fraction: float = setting(
        1.0,
        "share of the training patients; a smaller share is a subset of a larger one",
        above=0,
        at_most=1,
    )
    patient_seed: int = setting(
        0, "seed of the draw of that share", at_least=0, at_most=LARGEST_SEED
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reader == "webdataset":
            self._check_stream()
        elif self.stream is not None:
            raise UserError("data.stream is read by data.reader=webdataset only.")

    def _check_stream(self) -> None:
        """Raise for settings that the streaming reader does not support.

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


@dataclass(frozen=True)
class FaultSettings(Section, name="faults"):
    """What happens to a step whose gradient is NaN, infinite or too large.

    The gradient decides because it is summed over ranks: all ranks see the same norm and act the
    same, and a loss that is NaN on one of them is NaN in all gradients.
    """

    on_bad_loss: str = setting(
        "stop", choices={"stop": "", "skip": "weights stay as they are, the step is counted"}
    )
    max_grad_norm: float | None = setting(
        None,
        "a larger total gradient norm (before clipping) is bad too; null: only NaN and infinity",
        above=0,
    )
    max_skipped: int = setting(
        20, "consecutive bad steps after which the run ends in any case", at_least=0
    )


@dataclass(frozen=True)
class CheckpointSettings(Section, name="checkpoint"):
    """When checkpoints are written, and which is the best."""

    every_s: float = setting(
        600.0, "between checkpoints; one is also written after every validation", unit="s"
    )
    every_samples: int | None = setting(
        None, "samples between checkpoints; null: by time alone", at_least=1
    )
    keep: int = setting(2, "newest checkpoints kept beside best.ckpt", at_least=1)
    background: bool = setting(
        False, "write on a thread from a copy of the state (host memory: one more copy)"
    )
    monitor: str = setting(
        "val/macro_auroc",
        "column of metrics.csv that decides about best.ckpt",
        choices=tuple(MONITORS),
    )
    mode: str | None = setting(
        None,
        "null: that of the monitor (min of val/loss, max of val/macro_auroc)",
        choices=("max", "min"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        mode = MONITORS[self.monitor]
        if self.mode not in (mode, None):
            raise UserError(
                f"checkpoint.mode={self.mode} contradicts checkpoint.monitor={self.monitor}: "
                f"{'higher' if mode == 'max' else 'lower'} is better. Leave checkpoint.mode out."
            )
        object.__setattr__(self, "mode", mode)


@dataclass(frozen=True)
class ProbeSettings(Section, name="probe"):
    """A linear readout of the features on another data set, at validations."""

    shards: str | None = setting(
        None, "folder or URL of its shards, made with the same signal=; null: no probe"
    )
    every_validations: int = setting(1, "validations between probes", at_least=1)
    max_records: int = setting(
        2000,
        "windows at most of its train split (fitted on) and of its val split (scored on)",
        at_least=1,
    )
    penalty: float = setting(0.01, "L2 penalty of the readout, on standardised features", above=0)


@dataclass(frozen=True)
class TrainerSettings(Section, name="trainer"):
    """Where and how training runs."""

    accelerator: str = setting("auto", choices=("auto", "cpu", "gpu"))
    devices: int = setting(1, "ranks on each node", at_least=1)
    num_nodes: int = setting(1, "nodes of the job", at_least=1)
    precision: str | int = setting(
        32,
        choices={
            "auto": "bfloat16 where the device has it",
            "32": "",
            "bf16-mixed": "",
            "16-mixed": "",
        },
    )
    num_threads: int | None = setting(
        None, "threads of each rank on a CPU; null: torch's default", at_least=1
    )
    deterministic: bool = setting(
        False, "only deterministic kernels; what bit-exact resume needs on a GPU"
    )
    recompute: bool = setting(
        False, "activation checkpointing per block: less memory, a third more time"
    )
    ddp_timeout_s: float = setting(
        600.0, "time a rank waits for the others before the job ends", unit="s"
    )
    link_timeout_s: float = setting(
        25.0,
        "time another node may not answer before the job ends; 0: ddp_timeout_s",
        unit="s",
        at_least=0,
    )
    peak_tflops: float | None = setting(
        None,
        "peak TFLOP/s of one device in this precision, for MFU; null: known GPUs only",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "precision", str(self.precision))
        if self.link_timeout_s and self.link_timeout_s < 3:
            raise UserError(
                f"trainer.link_timeout_s={self.link_timeout_s:g} must be at least 3, or 0."
            )
        if self.accelerator == "cpu" and self.precision == "16-mixed":
            raise UserError(
                "trainer.precision=16-mixed needs a GPU. On a CPU use bf16-mixed or 32."
            )

    @property
    def on_gpu(self) -> bool:
        """Whether ranks compute on GPUs; `auto` is resolved by `training.trainer`."""
        return self.accelerator == "gpu"

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.devices * self.num_nodes


@dataclass(frozen=True)
class OptimizerSettings(Section, name="optimizer"):
    """AdamW (Loshchilov and Hutter 2019), with a learning rate that may depend on model size.

    `lr_rule=power`: a network of another size than `lr_reference_parameters` gets the rate
    lr * (parameters / lr_reference_parameters) ** lr_exponent. An exponent of -0.5 is muP's rule
    for Adam (hidden weights scale with 1 / width, parameters with width squared).

    Source: Yang et al. 2022, *Tensor Programs V*, arXiv 2203.03466; the fitted exponent is in
    docs/benchmarks/lr_rule.csv.
    """

    name: str = setting("adamw", choices=("adamw",))
    lr: float = setting(1e-3, "base learning rate", above=0, source="ECGFounder: reported")
    weight_decay: float = setting(
        1e-5,
        "decoupled weight decay",
        at_least=0,
        source="official fine-tuning; not stated for pretraining",
    )
    beta1: float = setting(0.9, "decay of the gradient's mean", at_least=0, below=1)
    beta2: float = setting(0.999, "decay of the gradient's square", at_least=0, below=1)
    eps: float = setting(1e-8, "added to the denominator", at_least=0)
    decay_all: bool = setting(
        True, "decay biases and normalisation weights too; false exempts one-dimensional tensors"
    )
    lr_rule: str = setting(
        "none",
        choices={
            "none": "",
            "power": "lr * (parameters / lr_reference_parameters) ** lr_exponent",
        },
    )
    lr_reference_parameters: float | None = setting(
        None, "size of the network that lr was tuned on", above=0
    )
    lr_exponent: float = setting(
        -0.13,
        "of lr_rule=power; 0: one rate for all, -0.5: muP in width",
        at_least=-1,
        at_most=0,
        source="fitted, docs/benchmarks/lr_rule.csv",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lr_rule == "power" and self.lr_reference_parameters is None:
            raise UserError(
                "optimizer.lr_rule=power needs optimizer.lr_reference_parameters: the "
                "parameters of the network that optimizer.lr was tuned on."
            )

    def for_network(self, parameters: int) -> "OptimizerSettings":
        """Return the settings with the learning rate of a network of that many parameters."""
        if self.lr_rule == "none":
            return self
        assert self.lr_reference_parameters is not None
        factor = (parameters / self.lr_reference_parameters) ** self.lr_exponent
        return replace(self, lr=self.lr * factor, lr_rule="none")


@dataclass(frozen=True)
class Augmentation(Section, name="augmentation"):
    """Strengths of the augmentations; 0 is off. None of them changes the state dict.

    Noise is in mV, whatever the profile normalises to: it is added before, and the record is
    divided by its own statistics without noise. A record's strength is uniform between 0 and the
    key's. Partners of mixup are neighbours in the epoch's order (slots 2i and 2i + 1), so ranks
    must hold even numbers of samples.
    """

    circular_shift: float = setting(
        0.0, "largest rotation in time, share of the window", at_least=0, at_most=1
    )
    lead_gain: float = setting(
        0.0, "standard deviation of the logarithm of a gain per lead", at_least=0
    )
    amplitude_gain: float = setting(
        0.0, "standard deviation of the logarithm of a gain common to all leads", at_least=0
    )
    lead_dropout: float = setting(
        0.0, "probability that a lead is set to zero", at_least=0, at_most=1
    )
    mixup: float = setting(
        0.0,
        "alpha of the Beta distribution of the mixing weight",
        at_least=0,
        source="arXiv 1710.09412",
    )
    crop: float = setting(
        0.0,
        "length of the random crop trained on, share of the window (0.25: 2.5 s of 10 s); 0: off",
        at_least=0,
        at_most=1,
    )
    white_noise: float = setting(
        0.0, "largest standard deviation of white noise", unit="mV", at_least=0
    )
    baseline_wander: float = setting(
        0.0, "largest root mean square of waves of 0.05 to 0.5 Hz", unit="mV", at_least=0
    )
    mains_noise: float = setting(
        0.0, "largest root mean square of mains interference", unit="mV", at_least=0
    )
    mains_hz: float = setting(
        60.0, "frequency of mains_noise, 50 or 60; below half the shards' rate", unit="Hz"
    )
    muscle_noise: float = setting(
        0.0, "largest standard deviation of a burst of muscle noise", unit="mV", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mains_hz not in (50.0, 60.0):
            raise UserError(f"augmentation.mains_hz={self.mains_hz:g} must be 50 or 60.")

    @property
    def adds_noise(self) -> bool:
        """Whether any kind of noise is on."""
        return bool(
            self.white_noise or self.baseline_wander or self.mains_noise or self.muscle_noise
        )


@dataclass(frozen=True)
class CsvLogger(Section, name="logger"):
    """metrics.csv alone, which is always written."""

    kind: str = setting("csv", choices=("csv", "tensorboard", "wandb"))


@dataclass(frozen=True)
class WandbLogger(Section, name="logger"):
    """Weights & Biases beside metrics.csv."""

    kind: str = setting("wandb", choices=("csv", "tensorboard", "wandb"))
    project: str = setting("ecgfounder_train", "name of the project")
    mode: str | None = setting(
        None, "null: online with an account, else offline", choices=("online", "offline")
    )
    finish_timeout_s: float = setting(
        60.0,
        "longest wait at the end for an unreachable server; the files stay for `wandb sync`",
        unit="s",
        at_least=0,
    )


@dataclass(frozen=True)
class PathSettings(Section, name="paths"):
    """Output folders; relative paths start at the working directory."""

    runs: str = setting(DEFAULT_PATHS["runs"], "folder of the run directories")
    ablations: str = setting(
        DEFAULT_PATHS["ablations"], "folder of what scripts/ablate.py writes beside the runs"
    )


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(RunSettings, name=""):
    """Keys of `pretrain`."""

    shards: str = setting(comment="folder that scripts/prepare.py wrote")
    run: str = setting(comment="name of the run; its directory is paths.runs/NAME")
    expect_split: str | None = setting(
        None, "name or fingerprint of the split that the shards must have; null: any"
    )
    overwrite: bool = setting(False, "true: move a run of this name aside and start from scratch")
    resume: ResumeSettings = section(ResumeSettings)
    data: DataSettings = section(DataSettings)
    budget: Budget = section(Budget)
    faults: FaultSettings = section(FaultSettings)
    checkpoint: CheckpointSettings = section(CheckpointSettings)
    ema: EmaSettings = section(EmaSettings)
    probe: ProbeSettings = section(ProbeSettings)


@dataclass(frozen=True, kw_only=True)
class DoctorSettings(Section, name=""):
    """Keys of `doctor` beside those of `pretrain`."""

    run: str = setting("doctor", "not used: nothing of a run is touched")
    format: str = setting("table", choices=("table", "json"))
    steps: int = setting(2, "steps that are timed, after one that is not", at_least=1)

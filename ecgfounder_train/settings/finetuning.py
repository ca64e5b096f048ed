"""Keys of `finetune`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ecgfounder_train.core.config import Section, section, setting
from ecgfounder_train.settings.evaluation import CALIBRATIONS, THRESHOLDS
from ecgfounder_train.settings.training import (
    MONITORS,
    Budget,
    CheckpointSettings,
    DataSettings,
    EmaSettings,
    ResumeSettings,
    RunSettings,
)


@dataclass(frozen=True)
class FinetuneCheckpoints(CheckpointSettings, name="checkpoints"):
    """When checkpoints are written, and which is the best."""

    monitor: str | None = setting(  # type: ignore[assignment]
        None,
        "null: val/macro_auroc for labels, val/loss for quantities",
        choices=tuple(MONITORS),
    )

    def __post_init__(self) -> None:
        if self.monitor is not None:
            super().__post_init__()
        else:
            Section.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(RunSettings, name=""):
    """Keys of `finetune`."""

    checkpoint: str | None = setting(
        comment="weights to start from: a path; with from_run=NAME best | last; none: fresh ones"
    )
    run: str = setting(comment="name of this run; its directory is paths.runs/NAME")
    from_run: str | None = setting(None, "name of the run whose best or last checkpoint is used")
    init: str = setting(
        "pretrained",
        choices={
            "pretrained": "",
            "random": "the checkpoint's network with fresh weights: a control",
        },
    )
    mode: str = setting(
        "preview",
        choices={
            "linear_probe": "",
            "attention_probe": "",
            "full": "",
            "preview": "linear probe, then full",
        },
    )
    overwrite: bool = setting(False, "true: move a run of this name aside and start from scratch")
    shards: str | None = setting(
        None, "folder of prepared shards with the answers, in place of the task's table"
    )
    cache: str = setting(
        "outputs/finetune_signals",
        "folder for signals and features, computed once; holds keys, and ids in *.private",
    )
    crops: int = setting(
        1,
        "crops per window: a random one trains, the mean over all answers (4 of 10 s: 2.5 s)",
        at_least=1,
    )
    layer_decay: float = setting(
        0.75,
        "factor on the learning rate per stage away from the head; 1: the same for all",
        above=0,
        at_most=1,
    )
    drop_path: float | None = setting(
        0.1,
        "stochastic depth of the last block while training; null: as the checkpoint has it",
        at_least=0,
        below=1,
    )
    dropout: float | None = setting(
        None, "at three places in every block; null: as the checkpoint has it", at_least=0, below=1
    )
    head_dropout: float | None = setting(
        None, "of the pooled features; null: as the checkpoint has it", at_least=0, below=1
    )
    regression_loss: str = setting(
        "mse", "of quantities", choices={"mse": "", "huber": "limits the influence of outliers"}
    )
    label_fraction: float = setting(
        1.0,
        "share of the training patients; a smaller share is a subset of a larger one",
        above=0,
        at_most=1,
    )
    label_fractions: Any = setting(
        None, "list of shares: one run for each, and for each of seeds and inits"
    )
    seeds: Sequence[int] = setting([0, 1, 2], "of label_fractions", at_least=0)
    scratch_lr: float = setting(
        2e-3, "optimizer.lr of inits=scratch, the same for all layers", above=0
    )
    inits: Sequence[str] = setting(
        ["pretrained", "scratch", "untrained"],
        "of label_fractions; untrained: fresh weights and a linear probe",
    )
    min_samples: int = setting(
        6000,
        "a small training split is repeated until this many samples, beyond max_epochs",
        at_least=0,
    )
    batch_size: int = setting(64, "windows per forward pass of embedding and testing", at_least=1)
    controls: Sequence[str] = setting(
        [], "names of finished runs of the same task that the report compares with"
    )
    threshold: str = setting("youden", "threshold rule of the report", choices=THRESHOLDS)
    calibration: str = setting("isotonic", choices=CALIBRATIONS)
    gradient_clip_norm: float | None = setting(
        1.0, "largest total gradient norm; null: no clipping", above=0
    )
    resume: ResumeSettings = section(ResumeSettings)
    data: DataSettings = section(
        DataSettings,
        only=("global_batch_size", "batch_size_per_rank", "checksum"),
        global_batch_size=128,
    )
    budget: Budget = section(
        Budget,
        only=(
            *("max_epochs", "max_samples", "validate_every_epochs", "validate_every_samples"),
            "patience",
        ),
        max_epochs=10.0,
    )
    checkpoints: FinetuneCheckpoints = section(FinetuneCheckpoints)
    ema: EmaSettings = section(EmaSettings)

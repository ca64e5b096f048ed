"""Keys of `ablate` and of the ablation group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecgfounder_train.core.config import LARGEST_SEED, Section, section, setting
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.settings.evaluation import DEVICES


@dataclass(frozen=True)
class SearchSettings(Section, name="search"):
    """The search of `ablate sweep`."""

    trials: int = setting(20, "sweep: runs in total, those of earlier calls included", at_least=1)
    seed: int = setting(0, "sweep: seed of Optuna's sampler", at_least=0, at_most=LARGEST_SEED)
    parameters: Sequence[str] = setting(
        ["optimizer.lr=log(1e-4,1e-2)"],
        "sweep: KEY=log(LOW,HIGH) | KEY=linear(LOW,HIGH) | KEY=one_of(A,B)",
    )


@dataclass(frozen=True, kw_only=True)
class AblateSettings(Section, name=""):
    """Keys of `ablate`."""

    shards: str | None = setting(
        None, "folder that scripts/prepare.py wrote; needed by run and sweep"
    )
    overrides: Sequence[str] = setting(
        [], "more arguments of scripts/pretrain.py for every member, each in quotes"
    )
    member: int | None = setting(
        None, "run: only this number of the list (a SLURM array's task); null: all", at_least=0
    )
    launcher: Any = setting(
        None, "set by hydra/launcher=submitit_slurm; null: here, one after the other"
    )
    split: str = setting(
        "val",
        "report: split that is compared; test only once, when every member is finished",
        choices=("val", "test"),
    )
    checkpoint: str = setting(
        "last", "report", choices={"last": "every member saw the same", "best": "by validation"}
    )
    group: str | None = setting(
        None, "report: group of the vocabulary that the headline covers; null: all labels"
    )
    device: str = setting("auto", "report, table", choices=DEVICES)
    batch_size: int = setting(256, "report: windows per forward pass", at_least=1)
    search: SearchSettings = section(SearchSettings)


@dataclass(frozen=True)
class BudgetRule(Section, name="ablation.budget"):
    """What all members have in common: samples seen, or training FLOPs."""

    samples: float | None = setting(None, "ECGs each member sees", above=0)
    flops: float | None = setting(
        None,
        "instead: training FLOPs of each member (three forward passes per ECG)",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.samples is None) == (self.flops is None):
            raise UserError(
                "An ablation compares under one budget: give either ablation.budget.samples or "
                "ablation.budget.flops, the other null."
            )


@dataclass(frozen=True, kw_only=True)
class AblationSettings(Section, name="ablation"):
    """An ablation."""

    name: str = setting(comment="runs are called NAME__MEMBER")
    axes: Mapping[str, Any] = setting(comment="what is varied, with the values of each")
    budget: BudgetRule = section(BudgetRule)
    overrides: Sequence[str] = setting([], "arguments of scripts/pretrain.py for every member")

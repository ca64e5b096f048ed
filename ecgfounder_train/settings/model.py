"""The model group: a network of the table with its regularisation, or a size to solve for."""

from collections.abc import Sequence
from dataclasses import dataclass

from ecgfounder_train.core.config import Section, setting

KERNELS = {
    "auto": "on a GPU the faster one per layer, measured at the start",
    "torch": "",
    "triton": "",
}


@dataclass(frozen=True, kw_only=True)
class ArchitectureSettings(Section, name="model"):
    """Keys that change a network's architecture; given as +model.KEY=VALUE, else the table's."""

    widths: Sequence[int] | None = setting(
        None, "channels per stage, multiples of group_width", at_least=1, composed=False
    )
    depths: Sequence[int] | None = setting(None, "blocks per stage", at_least=1, composed=False)
    base_filters: int | None = setting(
        None, "channels after the first convolution", at_least=1, composed=False
    )
    stage_strides: Sequence[int] | None = setting(
        None, "stride of each stage's first block", at_least=1, composed=False
    )
    stem_stride: int = setting(2, "stride of the first convolution", at_least=1, composed=False)
    kernel_size: int = setting(
        16, "samples, of the first and the grouped convolutions", at_least=1, composed=False
    )
    group_width: int = setting(
        16, "channels per group of the grouped convolutions", at_least=1, composed=False
    )
    pooling: str = setting(
        "mean", "over time, before the head", choices=("mean", "attention"), composed=False
    )


@dataclass(frozen=True, kw_only=True)
class ModelSettings(ArchitectureSettings, name="model"):
    """A network of the table and its regularisation."""

    name: str = setting(comment="network of the table")
    norm: str = setting(
        "none", choices={"none": "the released form, BatchNorm bypassed", "batch": "BatchNorm used"}
    )
    dropout: float = setting(
        0.0,
        "at three places in every block; the original has 0.5 there and bypasses it",
        at_least=0,
        below=1,
    )
    head_dropout: float = setting(
        0.0, "of the pooled features, before the linear head", at_least=0, below=1
    )
    drop_path: float = setting(
        0.0,
        "stochastic depth: the last block's rate, rising linearly from 0 at the first",
        at_least=0,
        below=1,
    )
    kernels: str = setting("auto", choices=KERNELS)


@dataclass(frozen=True, kw_only=True)
class FamilySettings(ArchitectureSettings, name="model"):
    """A network solved for a number of parameters."""

    name: str = setting(comment="net1d_family")
    target_parameters: float = setting(5_000_000, "parameters of the network, such as 5e6", above=0)
    family: str = setting("width", "what is scaled", choices=("width", "depth", "regnet"))
    base: str = setting(
        "net1d_31m", "network that is scaled; everything not scaled is taken from it"
    )
    kernels: str = setting("auto", choices=KERNELS)
    norm: str = setting("none", choices=("none", "batch"), composed=False)
    dropout: float = setting(
        0.0, "as of the networks of the table", at_least=0, below=1, composed=False
    )
    head_dropout: float = setting(
        0.0, "as of the networks of the table", at_least=0, below=1, composed=False
    )
    drop_path: float = setting(
        0.0, "as of the networks of the table", at_least=0, below=1, composed=False
    )

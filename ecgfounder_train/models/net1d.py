"""Net1D, the RegNet-style 1-D convolutional network of ECGFounder, in a table of sizes.

Paper: Li J. et al., *An Electrocardiogram Foundation Model Built on over 10 Million Recordings
with External Evaluation across Multiple Domains*, NEJM AI 2025, arXiv 2410.04133; the network
goes back to Hong S. et al., *HOLMES*, KDD 2020. Original implementations: PKUDigitalHealth/
ECGFounder and hsd1503/resnet1d (``net1d.py``). This is an own implementation of the same function
with the same state-dict names, so that released weights load with ``strict=True``.

What differs from the original:

* Signals travel as (B, C, 1, T) in channels-last memory: on CPU the pointwise convolutions are
  then plain matrix products without reordering. Parameters keep their 1-D shapes.
* Normalisation modules that the forward pass bypasses are frozen, as otherwise they never get a
  gradient and DistributedDataParallel stops.
* Stochastic depth, a dropout before the head, strides and kernel size are options (off, or the
  released values, by default). None of them changes the state dict's names.
* The head may pool over time by attention instead of by the mean (an attention probe); that adds
  `attention.*` to the state dict.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.models.kernels import (
    Kernels,
    gated_shortcut,
    grouped_convolution,
    pointwise,
    time_mean,
)

Norm = Literal["none", "batch"]
Pooling = Literal["mean", "attention"]


@dataclass(frozen=True)
class Net1DConfig:
    """Everything that fixes a Net1D.

    `widths` and `depths` have one entry per stage; the first block of stage i strides by
    `stage_strides[i]`. Widths are multiples of `group_width`, the channels per group of the k16
    convolution. `dropout` is the rate at the original's three places in every block (it has 0.5
    there, bypassed), `head_dropout` acts on the pooled features, `drop_path` is the last block's
    rate of stochastic depth, rising linearly from 0 at the first block. `pooling` is how the head
    sums up time. `kernels` chooses who computes; it changes speed, not the function.
    """

    widths: tuple[int, ...] = (64, 160, 160, 400, 400, 1024, 1024)
    depths: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 4)
    base_filters: int = 64
    num_leads: int = 12
    num_labels: int = 150
    kernel_size: int = 16
    group_width: int = 16
    stem_stride: int = 2
    stage_strides: tuple[int, ...] | None = None
    norm: Norm = "none"
    dropout: float = 0.0
    head_dropout: float = 0.0
    drop_path: float = 0.0
    kernels: Kernels = "auto"
    pooling: Pooling = "mean"

    def __post_init__(self) -> None:
        """Check what a user can get wrong.

        Raises:
            UserError: names the key, its value and what is valid.
        """
        for key in ("widths", "depths", "stage_strides"):
            value = getattr(self, key)
            if value is not None:  # YAML gives lists; a tuple keeps the config hashable
                object.__setattr__(self, key, tuple(value))
        if self.stage_strides is None:
            object.__setattr__(self, "stage_strides", (2,) * len(self.widths))
        lengths = {len(self.widths), len(self.depths), len(self.stage_strides or ())}
        if len(lengths) != 1 or not self.widths:
            raise UserError(
                "model.widths, model.depths and model.stage_strides need one entry per stage, "
                f"got {self.widths}, {self.depths} and {self.stage_strides}."
            )
        for key in ("base_filters", "num_leads", "num_labels", "kernel_size", "stem_stride"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key}={getattr(self, key)} must be at least 1.")
        for key in ("depths", "stage_strides"):
            if min(getattr(self, key)) < 1:
                raise UserError(f"model.{key}={getattr(self, key)}: every entry is at least 1.")
        if any(width < 1 or width % self.group_width for width in self.widths):
            raise UserError(
                f"model.widths={self.widths}: every width is a multiple of "
                f"model.group_width={self.group_width}."
            )
        if any(a > b for a, b in zip((self.base_filters, *self.widths), self.widths, strict=False)):
            raise UserError(
                f"model.widths={self.widths} (after model.base_filters={self.base_filters}) must "
                "not shrink: the shortcut can only pad channels."
            )
        if self.kernels not in get_args(Kernels):
            hint = did_you_mean(str(self.kernels), get_args(Kernels))
            raise UserError(f"model.kernels={self.kernels!r} is unknown.{hint}")
        if self.norm not in get_args(Norm):
            hint = did_you_mean(str(self.norm), get_args(Norm))
            raise UserError(f"model.norm={self.norm!r} is unknown.{hint}")
        if self.pooling not in get_args(Pooling):
            hint = did_you_mean(str(self.pooling), get_args(Pooling))
            raise UserError(f"model.pooling={self.pooling!r} is unknown.{hint}")
        for key in ("dropout", "head_dropout", "drop_path"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise UserError(f"model.{key}={getattr(self, key)} must be in [0, 1).")


def same_padding(num_samples: int, kernel_size: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after a signal that make the output ceil(n / stride) long.

    Source: TensorFlow's "SAME" rule as in the original; an odd total puts more at the end.
    """
    num_outputs = -(-num_samples // stride)
    total = max(0, (num_outputs - 1) * stride + kernel_size - num_samples)
    return total // 2, total - total // 2


class SameConv1d(nn.Module):
    """A 1-D convolution with "same" padding, run as a 2-D one of height 1.

    The wrapped `conv` gives the parameters the names and shapes of the released state dict.

    Shape: (B, C_in, 1, T) -> (B, C_out, 1, ceil(T / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        before, after = same_padding(x.shape[-1], conv.kernel_size[0], conv.stride[0])
        if before != after:  # even padding is free inside the convolution, odd needs a copy
            x, before = F.pad(x, (before, after)), 0
        weight, stride = conv.weight.unsqueeze(2), (1, conv.stride[0])
        return F.conv2d(x, weight, conv.bias, stride, (0, before))


class PointwiseConv1d(SameConv1d):
    """The convolution of kernel size 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.conv.weight, self.conv.bias)


class GroupedConv1d(SameConv1d):
    """The convolution of a block, of its input or of its input's Swish."""

    def __init__(self, channels: int, stride: int, config: Net1DConfig) -> None:
        groups = channels // config.group_width
        super().__init__(channels, channels, config.kernel_size, stride, groups)
        self.kernels = config.kernels

    def forward(self, x: Tensor, swish: bool = False) -> Tensor:
        conv = self.conv
        stride = conv.stride[0]
        padding = same_padding(x.shape[-1], conv.kernel_size[0], stride)
        return grouped_convolution(x, conv.weight, conv.bias, stride, padding, swish, self.kernels)


class Block(nn.Module):
    """Convolutions 1x1, grouped and 1x1, squeeze-and-excitation, and a parameter-free shortcut.

    Shape: (B, in_channels, 1, T) -> (B, out_channels, 1, ceil(T / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        config: Net1DConfig,
        is_first: bool,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.is_first = is_first
        self.stride = stride
        self.use_norm = config.norm == "batch"
        self.dropout = config.dropout
        self.drop_path = drop_path
        self.kernels = config.kernels
        extra = out_channels - in_channels
        self.channel_padding = (extra // 2, extra - extra // 2)
        # BatchNorm2d, as signals have a height of 1; its state is that of BatchNorm1d.
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = PointwiseConv1d(in_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = GroupedConv1d(out_channels, stride, config)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.conv3 = PointwiseConv1d(out_channels, out_channels)
        self.se_fc1 = nn.Linear(out_channels, out_channels // 2)
        self.se_fc2 = nn.Linear(out_channels // 2, out_channels)
        if not self.use_norm:
            for norm in (self.bn1, self.bn2, self.bn3):
                norm.requires_grad_(False)
        elif is_first:  # its first activation is skipped, and the normalisation with it
            self.bn1.requires_grad_(False)

    def _activate(self, x: Tensor, norm: nn.Module) -> Tensor:
        if self.use_norm:
            x = norm(x)
        x = F.silu(x)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _gate(self, x: Tensor) -> Tensor:
        """Return the factors of squeeze-and-excitation (B, C), stochastic depth included."""
        squeezed = F.silu(self.se_fc1(time_mean(x)))
        gate = torch.sigmoid(self.se_fc2(squeezed))
        if self.training and self.drop_path:
            keep = 1.0 - self.drop_path
            gate = gate * gate.new_empty(len(gate), 1).bernoulli_(keep).div_(keep)
        return gate

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.is_first else self._activate(x, self.bn1)
        out = self.conv1(out)
        if self.dropout and self.training:
            out = self.conv2(self._activate(out, self.bn2))
        else:
            out = self.conv2(self.bn2(out) if self.use_norm else out, swish=True)
        out = self.conv3(self._activate(out, self.bn3))
        return gated_shortcut(out, self._gate(out), x, self.stride, self.kernels)


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Return a block's output, keeping nothing for the backward pass but its input.

    The backward pass runs the block again, with the same dropout. Running moments of BatchNorm are
    of the first run only.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _untracked(block)

    output: Tensor = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return output


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:  # not `track_running_stats`: the second run must save the same tensors
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


class Stage(nn.Module):
    """Blocks of one width; the first of them changes channels and strides."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(blocks)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        for block in self.block_list:
            x = recomputed(block, x) if recompute else block(x)
        return x


class AttentionPool(nn.Module):
    """Weighted means over time, a learned weighting for each group of `group_width` channels.

    It begins as the plain mean (all scores 0), so a head that was fitted on means stays right.

    Shape: (B, C, T) -> (B, C) float32.
    """

    def __init__(self, num_features: int, group_width: int) -> None:
        super().__init__()
        self.num_groups = num_features // group_width
        self.norm = nn.LayerNorm(num_features)
        self.score = nn.Linear(num_features, self.num_groups, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, sequence: Tensor) -> Tensor:
        sequence = sequence.float()
        with torch.autocast(sequence.device.type, enabled=False):
            scores = self.score(self.norm(sequence.transpose(1, 2)))  # (B, T, groups)
            weights = scores.softmax(1).transpose(1, 2)
            grouped = sequence.reshape(len(sequence), self.num_groups, -1, sequence.shape[-1])
            return torch.einsum("bgct,bgt->bgc", grouped, weights).flatten(1)


class Net1D(nn.Module):
    """The network: normalised signals in, one logit per label out, for any signal length.

    Shape: (B, num_leads, T) float -> (B, num_labels); trained at 500 Hz x 10 s, T = 5000.

    Attributes:
        recompute: Whether training keeps each block's input only and runs the block again in the
            backward pass: a fraction of the memory for a third more time.
    """

    def __init__(self, config: Net1DConfig) -> None:
        super().__init__()
        self.config = config
        self.num_leads = config.num_leads
        self.num_labels = config.num_labels
        self.num_features = config.widths[-1]
        self.use_norm = config.norm == "batch"
        self.recompute = False
        self.first_conv = SameConv1d(
            config.num_leads, config.base_filters, config.kernel_size, config.stem_stride
        )
        self.first_bn = nn.BatchNorm2d(config.base_filters)
        if not self.use_norm:
            self.first_bn.requires_grad_(False)
        self.stage_list = nn.ModuleList(_build_stages(config))
        self.dense = nn.Linear(self.num_features, config.num_labels)
        if config.pooling == "attention":
            self.attention = AttentionPool(self.num_features, config.group_width)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last stage's sequence and its mean over time.

        Shape: (B, num_leads, T) -> (B, num_features, T'), (B, num_features).

        Raises:
            ValueError: the input has another number of leads or of axes.
        """
        if x.ndim != 3 or x.shape[1] != self.num_leads:
            raise ValueError(
                f"Net1D takes signals of shape (batch, {self.num_leads} leads, samples), "
                f"got {tuple(x.shape)}."
            )
        x = x.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        x = self.first_conv(x)
        if self.use_norm:
            x = self.first_bn(x)
        x = F.silu(x)
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        for stage in self.stage_list:
            x = stage(x, recompute)
        # The mean in float32: bf16 features would tie the logits of many records.
        return x.squeeze(2), x.mean((2, 3), dtype=torch.float32)

    def forward_head(self, pooled: Tensor) -> Tensor:
        """Return the logits of pooled features, in float32 also under autocast.

        Shape: (B, num_features) -> (B, num_labels).
        """
        pooled = F.dropout(pooled, self.config.head_dropout, self.training)
        with torch.autocast(pooled.device.type, enabled=False):
            logits: Tensor = self.dense(pooled.to(self.dense.weight.dtype))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        sequence, mean = self.forward_features(x)
        pooled = self.attention(sequence) if self.config.pooling == "attention" else mean
        return self.forward_head(pooled)

    def reset_classifier(self, num_labels: int) -> None:
        """Replace the head by a fresh one for `num_labels` labels, on the same device and dtype."""
        self.config = replace(self.config, num_labels=num_labels)
        self.num_labels = num_labels
        old = self.dense.weight
        self.dense = nn.Linear(self.num_features, num_labels, device=old.device, dtype=old.dtype)


def _build_stages(config: Net1DConfig) -> list[Stage]:
    """Return the stages, the rate of stochastic depth rising linearly over all blocks."""
    assert config.stage_strides is not None
    num_blocks = sum(config.depths)
    stages, index, in_channels = [], 0, config.base_filters
    for width, depth, stride in zip(
        config.widths, config.depths, config.stage_strides, strict=True
    ):
        blocks = []
        for position in range(depth):
            rate = config.drop_path * index / max(1, num_blocks - 1)
            block_stride = stride if position == 0 else 1
            blocks.append(Block(in_channels, width, block_stride, config, index == 0, rate))
            in_channels = width
            index += 1
        stages.append(Stage(blocks))
    return stages


def _scaled(*widths: int) -> Net1DConfig:
    """Return a size of the released family: its depths, base filters = first width."""
    return Net1DConfig(widths=widths, base_filters=widths[0])


# Parameters count the bypassed BatchNorm, 12 leads and 150 labels, as the paper's sizes do.
# 500k, 1m, 12m, 26m, 76m and 110m are what `families.solve` gives for 0.5, 1.2, 11.7, 25.6, 76.3
# and 110 M: the released widths times one factor (0.60, 0.905, 1.61 and 1.935 for the last four),
# rounded to the group width. The paper names only the totals. 2m and 8m are the two smaller width
# lists found in the authors' published code.
MODEL_TABLE: dict[str, Net1DConfig] = {
    "net1d_500k": _scaled(16, 16, 32, 32, 32, 80, 96),
    "net1d_1m": _scaled(16, 32, 32, 64, 64, 160, 160),
    "net1d_2m": _scaled(16, 32, 32, 80, 80, 256, 256),
    # For 1,000 samples (10 s at 100 Hz): seven halvings after the stem would leave 4 positions,
    # five leave 16, and the early, long stages that cost most of the time are narrow. BatchNorm,
    # as a small data set from scratch needs far fewer epochs with it.
    "net1d_3m_100hz": Net1DConfig(
        widths=(32, 64, 128, 256, 512), depths=(2, 2, 2, 2, 2), base_filters=32, norm="batch"
    ),
    "net1d_8m": _scaled(32, 64, 64, 160, 160, 512, 512),
    "net1d_12m": _scaled(32, 96, 96, 240, 240, 608, 608),
    "net1d_26m": _scaled(64, 144, 144, 368, 368, 928, 928),
    "net1d_31m": _scaled(64, 160, 160, 400, 400, 1024, 1024),
    "net1d_76m": _scaled(96, 256, 256, 640, 640, 1648, 1648),
    "net1d_110m": _scaled(128, 304, 304, 768, 768, 1984, 1984),
}


def model_names() -> tuple[str, ...]:
    """Return the names `create_model` knows, smallest first."""
    return tuple(MODEL_TABLE)


def create_model(name: str, num_leads: int = 12, num_labels: int = 150, **overrides: Any) -> Net1D:
    """Return a freshly initialised Net1D of the table.

    Args:
        name: one of `model_names()`.
        num_leads: channels of the input.
        num_labels: outputs.
        overrides: fields of `Net1DConfig` that replace the table's, e.g. ``norm="batch"``.

    Raises:
        UserError: an unknown name or override (the nearest valid ones are named), a bad value.
    """
    if name not in MODEL_TABLE:
        raise UserError(f"model={name!r} is unknown.{did_you_mean(name, MODEL_TABLE)}")
    known = [field.name for field in fields(Net1DConfig)]
    for key in overrides:
        if key not in known:
            raise UserError(f"model.{key} is not a setting of {name}.{did_you_mean(key, known)}")
    overrides |= {"num_leads": num_leads, "num_labels": num_labels}
    if "widths" in overrides and "stage_strides" not in overrides:
        overrides["stage_strides"] = None  # the table's would be of the old number of stages
    return Net1D(replace(MODEL_TABLE[name], **overrides))

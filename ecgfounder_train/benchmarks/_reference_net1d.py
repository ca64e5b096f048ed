"""The published network as plainly as PyTorch says it: what `bench.py model` compares with.

1-D convolutions on (B, C, T), an explicit zero padding before every convolution and pooling, Swish,
squeeze-and-excitation and shortcut as separate operations. Its state dict has the released names,
so weights go back and forth and the two networks can be compared number by number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgfounder_train.models.net1d import Net1DConfig


def _pad(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    total = max(0, (-(-x.shape[-1] // stride) - 1) * stride + kernel_size - x.shape[-1])
    return F.pad(x, (total // 2, total - total // 2))


class _Conv(nn.Module):
    def __init__(self, channels: tuple[int, int], size: int, stride: int = 1, groups: int = 1):
        super().__init__()
        self.size, self.stride = size, stride
        self.conv = nn.Conv1d(*channels, size, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv(_pad(x, self.size, self.stride))
        return output


class _Block(nn.Module):
    def __init__(self, before: int, width: int, stride: int, config: Net1DConfig, first: bool):
        super().__init__()
        self.stride, self.first, self.extra = stride, first, width - before
        # Bypassed in the released network, but part of its state.
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm1d(n) for n in (before, width, width))
        self.conv1 = _Conv((before, width), 1)
        groups = width // config.group_width
        self.conv2 = _Conv((width, width), config.kernel_size, stride, groups)
        self.conv3 = _Conv((width, width), 1)
        self.se_fc1, self.se_fc2 = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.first else F.silu(x)
        out = self.conv1(out)
        out = self.conv2(F.silu(out))
        out = self.conv3(F.silu(out))
        gate = torch.sigmoid(self.se_fc2(F.silu(self.se_fc1(out.mean(-1)))))
        shortcut = x
        if self.stride > 1:
            padding = self.stride - 1
            shortcut = F.pad(x, (padding // 2, padding - padding // 2))
            shortcut = F.max_pool1d(shortcut, self.stride)
        shortcut = F.pad(shortcut, (0, 0, self.extra // 2, self.extra - self.extra // 2))
        output: Tensor = out * gate[:, :, None] + shortcut
        return output


class _Stage(nn.Module):
    def __init__(self, blocks: list[_Block]) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(blocks)


class ReferenceNet1D(nn.Module):
    """The reference network of a configuration without normalisation, dropout and drop path.

    Shape: (B, num_leads, T) -> (B, num_labels).
    """

    def __init__(self, config: Net1DConfig) -> None:
        super().__init__()
        assert config.norm == "none" and config.stage_strides is not None
        first = config.base_filters
        self.first_conv = _Conv((config.num_leads, first), config.kernel_size, config.stem_stride)
        self.first_bn = nn.BatchNorm1d(first)
        stages, before = [], first
        for stage, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            blocks = []
            for block in range(depth):
                stride = config.stage_strides[stage] if block == 0 else 1
                blocks.append(_Block(before, width, stride, config, stage == block == 0))
                before = width
            stages.append(_Stage(blocks))
        self.stage_list = nn.ModuleList(stages)
        self.dense = nn.Linear(before, config.num_labels)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first_conv(x))
        for stage in self.stage_list:
            for block in stage.block_list:  # type: ignore[union-attr, operator]
                x = block(x)
        logits: Tensor = self.dense(x.mean(-1))
        return logits

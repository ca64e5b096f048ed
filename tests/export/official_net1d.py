"""The official class told over again from its description, as a reader of its files would have it.

Same names of modules and arguments, so that `load_state_dict(strict=True)` here says what it says
there; written from the description of the network, not from its text.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def padded(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    length = x.shape[-1]
    total = max(0, (-(-length // stride) - 1) * stride + kernel_size - length)
    return F.pad(x, (total // 2, total - total // 2))


class Conv(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(padded(x, self.kernel_size, self.stride))
        return result


class Block(nn.Module):
    def __init__(
        self, in_channels: int, width: int, kernel_size: int, stride: int, groups: int, first: bool
    ) -> None:
        super().__init__()
        self.first, self.stride, self.extra = first, stride, width - in_channels
        self.bn1, self.do1 = nn.BatchNorm1d(in_channels), nn.Dropout(0.5)
        self.conv1 = Conv(in_channels, width, 1, 1)
        self.bn2, self.do2 = nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.conv2 = Conv(width, width, kernel_size, stride, groups)
        self.bn3, self.do3 = nn.BatchNorm1d(width), nn.Dropout(0.5)
        self.conv3 = Conv(width, width, 1, 1)
        self.se_fc1, self.se_fc2 = nn.Linear(width, width // 2), nn.Linear(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x if self.first else F.silu(x))
        out = self.conv3(F.silu(self.conv2(F.silu(out))))
        gate = torch.sigmoid(self.se_fc2(F.silu(self.se_fc1(out.mean(-1)))))
        shortcut = x
        if self.stride > 1:
            before = (self.stride - 1) // 2
            shortcut = F.pad(shortcut, (before, self.stride - 1 - before))
            shortcut = F.max_pool1d(shortcut, self.stride)
        below = self.extra // 2
        shortcut = F.pad(shortcut, (0, 0, below, self.extra - below))
        result: Tensor = out * gate[:, :, None] + shortcut
        return result


class Stage(nn.Module):
    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(blocks)


class Net1D(nn.Module):
    def __init__(
        self,
        in_channels: int,
        base_filters: int,
        ratio: float,
        filter_list: list[int],
        m_blocks_list: list[int],
        kernel_size: int,
        stride: int,
        groups_width: int,
        n_classes: int,
        verbose: bool = False,
        use_bn: bool = False,
        use_do: bool = False,
    ) -> None:
        super().__init__()
        assert ratio == 1 and not (verbose or use_bn or use_do)
        self.first_conv = Conv(in_channels, base_filters, kernel_size, 2)
        self.first_bn = nn.BatchNorm1d(base_filters)
        self.stage_list = nn.ModuleList()
        before = base_filters
        for number, (width, depth) in enumerate(zip(filter_list, m_blocks_list, strict=True)):
            blocks = []
            for index in range(depth):
                step, first = (stride if index == 0 else 1), number == index == 0
                groups = width // groups_width
                blocks.append(Block(before, width, kernel_size, step, groups, first))
                before = width
            self.stage_list.append(Stage(blocks))
        self.dense = nn.Linear(before, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.first_conv(x))
        for stage in self.stage_list:
            for block in stage.block_list:  # type: ignore[union-attr]
                x = block(x)
        result: Tensor = self.dense(x.mean(-1))
        return result

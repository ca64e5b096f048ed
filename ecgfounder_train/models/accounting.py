"""How large a Net1D is and what one ECG costs: counted, not timed."""

from dataclasses import dataclass

from torch import nn

from ecgfounder_train.models.net1d import Net1DConfig


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of scalars: `total` as the paper's sizes count, `trainable` what an optimizer sees.

    `total` contains the BatchNorm weights that ``norm="none"`` bypasses; `buffers` (running
    moments) are in neither.
    """

    total: int
    trainable: int
    buffers: int


def count_parameters(model: nn.Module) -> ParameterCount:
    """Return the parameter and buffer counts of any module."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return ParameterCount(
        total=sum(size for size, _ in sizes),
        trainable=sum(size for size, requires_grad in sizes if requires_grad),
        buffers=sum(buffer.numel() for buffer in model.buffers()),
    )


def forward_flops(config: Net1DConfig, num_samples: int) -> int:
    """Return the floating-point operations of one ECG's forward pass (a multiply-add is 2).

    Counts convolutions and linear layers, as `torch.utils.flop_counter` does; a training step
    costs about three times as much.
    """
    assert config.stage_strides is not None
    length = -(-num_samples // config.stem_stride)
    channels = config.base_filters
    macs = length * channels * config.num_leads * config.kernel_size
    for width, depth, stride in zip(
        config.widths, config.depths, config.stage_strides, strict=True
    ):
        for position in range(depth):
            macs += length * channels * width
            if position == 0:
                length = -(-length // stride)
            macs += length * width * (config.group_width * config.kernel_size + width)
            macs += 2 * width * (width // 2)  # squeeze-and-excitation
            channels = width
    return 2 * (macs + channels * config.num_labels)

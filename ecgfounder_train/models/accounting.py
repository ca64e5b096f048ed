"""Parameters, FLOPs and activation memory of a Net1D: counted, not timed."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class LayerCost:
    """What one layer must at least do for one ECG, its neighbours ideally fused into it.

    Attributes:
        name: Path of the module.
        flops: Floating-point operations of the forward pass; the backward pass takes twice that.
        forward_values: Numbers read from and written to memory in the forward pass.
        backward_values: The same in the backward pass.
    """

    name: str
    flops: int
    forward_values: int
    backward_values: int


def layer_costs(config: Net1DConfig, num_samples: int) -> list[LayerCost]:
    """Return the least work of every layer for one ECG, weights not counted (a batch shares them).

    Ideal fusion: an activation, padding or bias costs no traffic of its own. A convolution reads
    its input and writes its output; its backward pass reads the gradient and the input once for
    both products and writes the input's gradient. The gate of squeeze-and-excitation needs the
    whole output of the third convolution first, so that one and the shortcut are read again.
    """
    assert config.stage_strides is not None
    costs: list[LayerCost] = []
    length = -(-num_samples // config.stem_stride)
    channels = config.base_filters

    def convolution(name: str, macs: int, values_in: int, values_out: int, first: bool) -> None:
        backward = values_out + values_in + (0 if first else values_in)
        costs.append(LayerCost(name, 2 * macs, values_in + values_out, backward))

    signal = config.num_leads * num_samples
    macs = length * channels * config.num_leads * config.kernel_size
    convolution("stem", macs, signal, length * channels, True)
    for stage, (width, depth, stride) in enumerate(
        zip(config.widths, config.depths, config.stage_strides, strict=True)
    ):
        for position in range(depth):
            name = f"stage {stage} block {position}"
            before = length * channels
            convolution(f"{name} conv1", before * width, before, length * width, False)
            wide = length * width
            if position == 0:
                length = -(-length // stride)
            after = length * width
            taps = config.group_width * config.kernel_size
            convolution(f"{name} conv2", after * taps, wide, after, False)
            convolution(f"{name} conv3", after * width, after, after, False)
            gate = 4 * width * (width // 2)
            # Forward: conv3's output, shortcut, sum. Backward: gradient and conv3's output for the
            # gate's gradient; the shortcut's gradient is added to conv1's.
            costs.append(LayerCost(f"{name} gate", gate, before + 2 * after, before + 2 * after))
            channels = width
    return costs


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


def activation_bytes(model: nn.Module, signal: Tensor) -> int:
    """Return what one ECG's forward pass keeps for the backward pass of a training step, in bytes.

    Measured by what autograd saves under bfloat16 autocast, each storage once: the part of memory
    that grows with the batch. The rest (casts of the weights) is measured by a second batch size.

    Shape:
        signal: (B, num_leads, T), B at least 2, on the model's device.
    """
    half = len(signal) // 2
    more = _saved_bytes(model, signal[: 2 * half]) - _saved_bytes(model, signal[:half])
    return more // half


def _saved_bytes(model: nn.Module, signal: Tensor) -> int:
    held: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast(signal.device.type, torch.bfloat16):
        # What was saved lives as long as the output; an address used again would count once.
        output = model(signal)
        del output
    return sum(held.values())

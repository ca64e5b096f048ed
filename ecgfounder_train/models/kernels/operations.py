"""What Net1D calls: pointwise and grouped convolution, and the mean over time."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ecgfounder_train.models.kernels.grouped_cpu import GroupedConvolution
from ecgfounder_train.models.kernels.pointwise_cpu import PointwiseProduct


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a convolution of kernel size 1, as the matrix product it is in channels-last memory.

    Shape: x (B, C_in, 1, T), weight (C_out, C_in, 1) -> (B, C_out, 1, T).
    """
    if torch.onnx.is_in_onnx_export():  # elsewhere signals do not travel channels-last
        return F.conv2d(x, weight.unsqueeze(2), bias)
    signal, matrix = x.squeeze(2).transpose(1, 2), weight.squeeze(2)
    if _is_plain_float32(x) and torch.is_grad_enabled() and weight.requires_grad:
        product: Tensor = PointwiseProduct.apply(signal, matrix, bias)  # type: ignore[no-untyped-call]
    else:
        product = F.linear(signal, matrix, bias)
    return product.transpose(1, 2).unsqueeze(2)


def _is_plain_float32(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
    )


def grouped_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    swish: bool,
) -> Tensor:
    """Return the grouped convolution of a signal, or of its Swish, padded with zeros.

    Shape: x (B, C, 1, T), weight (C, C / groups, k), padding (before, after) -> (B, C, 1, T').
    """
    weight = weight.unsqueeze(2)
    if x.device.type == "cpu" and weight.requires_grad and torch.is_grad_enabled():
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        output: Tensor = GroupedConvolution.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, stride, padding, swish
        )
        return output
    if swish:
        x = F.silu(x)
    before, after = padding
    if before != after:  # even padding is free inside the convolution, odd needs a copy
        x, before = F.pad(x, (before, after)), 0
    groups = weight.shape[0] // weight.shape[1]
    return F.conv2d(x, weight, bias, (1, stride), (0, before), groups=groups)


def time_mean(x: Tensor) -> Tensor:
    """Return the mean over time, whose gradient is broadcast instead of written out.

    Shape: (B, C, 1, T) -> (B, C).
    """
    if torch.is_grad_enabled() and x.requires_grad:
        mean: Tensor = _TimeMean.apply(x)  # type: ignore[no-untyped-call]
        return mean
    return x.mean((2, 3))


class _TimeMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        spread: Tensor = (gradient / ctx.shape[-1])[:, :, None, None].expand(ctx.shape)
        return spread

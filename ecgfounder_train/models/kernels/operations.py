"""Operations of Net1D: convolutions, the gated shortcut, the mean over time."""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models.kernels import gpu, grouped_vector

Kernels = Literal["auto", "torch", "triton"]


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a convolution of kernel size 1, as the matrix product it is in channels-last memory.

    Shape: x (B, C_in, 1, T), weight (C_out, C_in, 1) -> (B, C_out, 1, T).
    """
    if torch.onnx.is_in_onnx_export():  # elsewhere signals do not travel channels-last
        return F.conv2d(x, weight.unsqueeze(2), bias)
    signal, matrix = x.squeeze(2).transpose(1, 2), weight.squeeze(2)
    return F.linear(signal, matrix, bias).transpose(1, 2).unsqueeze(2)


def grouped_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    swish: bool,
    kernels: Kernels = "auto",
) -> Tensor:
    """Return the grouped convolution of a signal, or of its Swish, padded with zeros.

    Shape: x (B, C, 1, T), weight (C, C / groups, k), padding (before, after) -> (B, C, 1, T').

    Raises:
        UserError: `kernels=triton` where Triton's kernels cannot run.
    """
    settings = (stride, padding, swish)
    on_cpu = x.device.type == "cpu" and kernels != "triton"
    if on_cpu and not (weight.requires_grad and torch.is_grad_enabled()):
        return _grouped_by_torch(x, weight, bias, *settings)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    output: Tensor
    by_vectors = kernels == "auto" and not torch.compiler.is_compiling()
    if on_cpu and by_vectors and grouped_vector.fits(x, weight):
        output = grouped_vector.VectorGroupedConvolution.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, *settings
        )
        return output
    if on_cpu:
        return _grouped_by_torch(x, weight, bias, *settings)

    def ours(*tensors: Tensor) -> Tensor:
        result: Tensor = gpu.TritonGroupedConvolution.apply(  # type: ignore[no-untyped-call]
            *tensors, *settings
        )
        return result

    def torchs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _grouped_by_torch(x, weight, bias, *settings)

    leaves = [x, weight] if bias is None else [x, weight, bias]
    key = ("grouped convolution", x.dtype, tuple(x.shape), tuple(weight.shape), stride)
    if bias is not None and _by_triton(kernels, key, gpu.fits(weight), leaves, ours, torchs):
        return ours(x, weight, bias)
    return _grouped_by_torch(x, weight, bias, *settings)


def _grouped_by_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    swish: bool,
) -> Tensor:
    if swish:
        x = F.silu(x)
    before, after = padding
    if before != after:  # even padding is free inside the convolution, odd needs a copy
        x, before = F.pad(x, (before, after)), 0
    groups = weight.shape[0] // weight.shape[1]
    return F.conv2d(x, weight.unsqueeze(2), bias, (1, stride), (0, before), groups=groups)


def gated_shortcut(
    out: Tensor, gate: Tensor, x: Tensor, stride: int, kernels: Kernels = "auto"
) -> Tensor:
    """Return out * gate plus the block's shortcut: x pooled by `stride`, widened by zero channels.

    Shape: out (B, C, 1, T'), gate (B, C), x (B, C_in, 1, T) -> (B, C, 1, T').

    Raises:
        UserError: `kernels=triton` where Triton's kernels cannot run.
    """

    def ours(*tensors: Tensor) -> Tensor:
        result: Tensor = gpu.TritonGatedShortcut.apply(  # type: ignore[no-untyped-call]
            *tensors, stride
        )
        return result

    def torchs(out: Tensor, gate: Tensor, x: Tensor) -> Tensor:
        return _gated_by_torch(out, gate, x, stride)

    if x.device.type == "cpu" and kernels != "triton":
        return _gated_by_torch(out, gate, x, stride)
    key = ("gated shortcut", out.dtype, tuple(out.shape), tuple(x.shape))
    same = out.dtype == x.dtype
    if _by_triton(kernels, key, same, [out, gate, x], ours, torchs):
        return ours(out, gate, x)
    return _gated_by_torch(out, gate, x, stride)


def _gated_by_torch(out: Tensor, gate: Tensor, x: Tensor, stride: int) -> Tensor:
    shortcut = same_max_pool(x, stride)
    if extra := out.shape[1] - x.shape[1]:
        shortcut = F.pad(shortcut, (0, 0, 0, 0, extra // 2, extra - extra // 2))
    return torch.addcmul(shortcut, out, gate[:, :, None, None])


def same_max_pool(x: Tensor, stride: int) -> Tensor:
    """Return the maximum over windows of `stride` samples, the signal padded with zeros.

    The padding is by zeros, not by -inf, as in the original: an incomplete last window of
    negative values gives 0.

    Shape: (B, C, 1, T) -> (B, C, 1, ceil(T / stride)).
    """
    if stride == 1:
        return x
    before = (stride - 1) // 2
    if before or x.shape[-1] % stride:  # otherwise the padding would fall off the last window
        x = F.pad(x, (before, stride - 1 - before))
    return F.max_pool2d(x, (1, stride))


def _by_triton(
    kernels: Kernels,
    key: tuple[Any, ...],
    fits: bool,
    tensors: list[Tensor],
    ours: Callable[..., Tensor],
    torchs: Callable[..., Tensor],
) -> bool:
    """Return whether Triton's kernel does this: as set, or as measured on these shapes."""
    if kernels == "torch" or torch.compiler.is_compiling():
        return False
    able = gpu.can_run(tensors[0].device.type)
    if kernels == "triton" and not able:
        raise UserError(
            "model.kernels=triton needs an NVIDIA GPU (compute capability 8.0 or more) and the "
            "package triton. Use model.kernels=auto or torch."
        )
    if not able or not fits:
        return False
    if kernels == "triton":
        return True
    wants = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)

    def trial(work: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        # On copies, and without a draw from any generator: the step itself must not notice.
        with torch.set_grad_enabled(wants), torch.autocast(tensors[0].device.type, enabled=False):
            leaves = [tensor.detach().requires_grad_(wants) for tensor in tensors]
            output = work(*leaves)
            gradients = torch.autograd.grad(output, leaves, output.detach()) if wants else ()
        return output.detach(), *gradients

    return gpu.faster_and_right((*key, wants), lambda: trial(ours), lambda: trial(torchs))


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

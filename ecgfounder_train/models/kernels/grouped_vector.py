"""Swish and grouped convolution in float32 on a CPU by compiled vector loops.

Why own code: a training step of `net1d_3m_100hz` takes 1.37 times the ECG/s of torch's operations
at 12 x 5,000 samples and batch 16 (38.1 against 27.8, CPU time of one thread), 1.28 times at
12 x 1,000 (175 against 136); one of `net1d_31m` 1.34 times (9.4 against 7.1). Own kernels for other
shapes, for bfloat16 (1.1 times) and for the pointwise convolution (1.0 times) were removed.

Only the input is kept for the backward pass: Swish is computed again there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDTH = 16
_TOGETHER_BYTES = 512 << 10
"""A unit of the forward pass takes as many records as fit in a core's second cache at once."""
_UNITS = 64
"""Units the weight's gradient is spread over, for any number of threads: its sums must not
depend on it."""


def fits(x: Tensor, weight: Tensor) -> bool:
    """Return whether the loops know this signal and weight (C, C / groups, k)."""
    return weight.shape[1] == WIDTH and x.dtype == torch.float32


class VectorGroupedConvolution(torch.autograd.Function):
    """Grouped convolution of a signal, or of its Swish.

    Shape: x (B, C, 1, T) channels-last, weight (C, 16, k), bias (C,) -> (B, C, 1, T').
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        padding: tuple[int, int],
        swish: bool,
    ) -> Tensor:
        from ecgfounder_train.models.kernels import grouped_rows
        from ecgfounder_train.models.kernels.openmp import work

        rows = _rows(x)
        batch, num_samples, channels = rows.shape
        taps = weight.shape[-1]
        num_outputs = (num_samples + sum(padding) - taps) // stride + 1
        result = rows.new_empty(batch, num_outputs, channels)
        by_tap = weight.view(-1, WIDTH, WIDTH, taps).permute(0, 3, 2, 1).float().contiguous()
        shift = weight.new_zeros(channels).float() if bias is None else bias.float()
        together = max(_TOGETHER_BYTES // (rows[0].numel() * rows.element_size()), 1)
        work(
            grouped_rows.forward(),
            channels // WIDTH * -(-batch // together),
            (rows, by_tap, shift, result),
            (channels, batch, num_samples, num_outputs, taps, stride, padding[0], swish, together),
        )
        ctx.save_for_backward(rows, weight)
        ctx.stride, ctx.before, ctx.swish = stride, padding[0], swish
        return _channels(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from ecgfounder_train.models.kernels import grouped_rows
        from ecgfounder_train.models.kernels.openmp import work

        rows, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        upstream = _rows(gradient)
        batch, num_samples, channels = rows.shape
        taps, groups = weight.shape[-1], channels // WIDTH
        together = -(-batch // max(_UNITS // groups, 1))
        parts = -(-batch // together)
        sums = weight.new_empty(parts, groups, taps, WIDTH, WIDTH, dtype=torch.float32)
        bias_sums = sums.new_empty(parts, channels)
        grad_rows = torch.empty_like(rows) if wants_x else None
        settings = (taps, ctx.stride, ctx.before, ctx.swish)
        wanted = (wants_x, wants_weight or wants_bias)
        work(
            grouped_rows.backward(),
            groups * parts,
            (rows, upstream, _by_phase(weight, ctx.stride, ctx.before), grad_rows, sums, bias_sums),
            (channels, batch, num_samples, upstream.shape[1], *settings, together, *wanted),
        )
        grad_weight = grad_bias = None
        if wants_weight:
            total = sums.sum(0) if parts > 1 else sums[0]
            grad_weight = total.permute(0, 3, 2, 1).reshape(weight.shape).to(weight.dtype)
        if wants_bias:
            grad_bias = bias_sums.sum(0).to(weight.dtype)
        return (
            None if grad_rows is None else _channels(grad_rows),
            grad_weight,
            grad_bias,
            None,
            None,
            None,
        )


def _by_phase(weight: Tensor, stride: int, before: int) -> Tensor:
    """Return weights as (group, tap, output, input), taps in the order the input's gradient reads.

    Inputs `stride` apart meet the same taps: those of the first such inputs come first, last tap
    first, as then the gradients they meet are adjacent.
    """
    taps = weight.shape[-1]
    order: list[int] = []
    for phase in range(stride):
        order += reversed(range((phase + before) % stride, taps, stride))
    by_tap = weight.view(-1, WIDTH, WIDTH, taps)[..., order]
    return by_tap.permute(0, 3, 1, 2).float().contiguous()


def _rows(x: Tensor) -> Tensor:
    """Return (B, C, 1, T) as (B, T, C), the layout of channels-last memory."""
    return x.squeeze(2).transpose(1, 2).contiguous()


def _channels(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2).unsqueeze(2)

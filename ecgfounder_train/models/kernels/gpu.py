"""The operations of Net1D on a GPU by Triton's kernels, and the choice between them and torch.

`auto` measures: the first time a layer's shape is seen, both ways run on that shape, their numbers
are compared, and the faster one stays for the life of the process. Where the kernels are slower or
wrong, on any device or with any compiler, torch trains instead.
"""

import functools
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

WIDTH = 16
"""Channels per group the kernels are written for: the side of a matrix unit's tile."""
_BLOCK = 64
_TAPS_AT_ONCE = 4
_PARTS = 512
"""Programs the weight gradient is spread over, for some waves on 132 multiprocessors."""


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on a CPU (for the tests)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def can_run(device_type: str) -> bool:
    """Return whether the kernels run on a device: NVIDIA from Ampere on, with Triton installed."""
    if device_type != ("cpu" if interpreted() else "cuda"):
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    if device_type == "cpu":
        return True
    return torch.version.cuda is not None and torch.cuda.get_device_capability()[0] >= 8


def fits(weight: Tensor) -> bool:
    """Return whether a grouped weight (C, C / groups, k) is of a shape the kernels know."""
    taps = weight.shape[-1]
    return weight.shape[1] == WIDTH and taps >= 4 and taps & (taps - 1) == 0


def grouped_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
) -> Tensor:
    """Return the grouped convolution of a channels-last signal.

    Shape: x (B, T, C), weight (C, 16, k), bias (C,) -> (B, T', C).
    """
    from ecgfounder_train.models.kernels import triton_kernels

    batch, num_samples, channels = x.shape
    taps = weight.shape[-1]
    num_outputs = (num_samples + sum(padding) - taps) // stride + 1
    result = x.new_empty(batch, num_outputs, channels)
    grid = (channels // WIDTH, -(-num_outputs // _BLOCK), batch)
    triton_kernels.grouped_forward[grid](
        x, _by_tap(weight), bias, result, num_samples, num_outputs, channels, stride, padding[0],
        taps, _TAPS_AT_ONCE, WIDTH, _BLOCK, bias is not None, interpreted(),
    )  # fmt: skip
    return result


def grouped_input_gradient(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    num_samples: int,
) -> Tensor:
    """Return the input's gradient, multiplied by the slope of Swish at `x` if given.

    Shape: gradient (B, T', C), weight (C, 16, k), x (B, T, C) -> (B, T, C).
    """
    from ecgfounder_train.models.kernels import triton_kernels

    batch, num_outputs, channels = gradient.shape
    taps = weight.shape[-1]
    result = gradient.new_empty(batch, num_samples, channels)
    per_phase = (num_samples + stride - 1) // stride
    tiles = -(-per_phase // _BLOCK)
    grid = (channels // WIDTH, tiles * stride, batch)
    triton_kernels.grouped_input_gradient[grid](
        gradient, _by_tap(weight), x, result, num_samples, num_outputs, channels, padding[0],
        stride, taps, _TAPS_AT_ONCE, WIDTH, _BLOCK, x is not None, interpreted(),
    )  # fmt: skip
    return result


def grouped_weight_gradient(
    x: Tensor, gradient: Tensor, taps: int, stride: int, padding: tuple[int, int]
) -> Tensor:
    """Return the weight's gradient, summed in a fixed order.

    Shape: x (B, T, C), gradient (B, T', C) -> (C, 16, k) float32.
    """
    from ecgfounder_train.models.kernels import triton_kernels

    batch, num_samples, channels = x.shape
    num_outputs = gradient.shape[1]
    groups = channels // WIDTH
    tiles = batch * -(-num_outputs // _BLOCK)
    tiles_per_part = -(-tiles // max(_PARTS // groups, 1))
    parts = -(-tiles // tiles_per_part)
    partial = x.new_empty(parts, groups, taps, WIDTH, WIDTH, dtype=torch.float32)
    triton_kernels.grouped_weight_gradient[(groups, parts)](
        x, gradient, partial, batch, num_samples, num_outputs, channels, stride, padding[0],
        tiles_per_part, taps, WIDTH, _BLOCK, interpreted(),
    )  # fmt: skip
    return partial.sum(0).permute(0, 3, 2, 1).reshape(channels, WIDTH, taps)


def _by_tap(weight: Tensor) -> Tensor:
    """Return (C, 16, k) weights as (group, k, input, output)."""
    _, width, taps = weight.shape
    return weight.view(-1, WIDTH, width, taps).permute(0, 3, 2, 1).contiguous()


class TritonGroupedConvolution(torch.autograd.Function):
    """Grouped convolution of a signal, or of its Swish, by Triton's kernels.

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
        signal = _rows(x)
        active = F.silu(signal) if swish else signal
        ctx.save_for_backward(signal if swish else None, active, weight)
        ctx.stride, ctx.padding = stride, padding
        return _channels(grouped_forward(active, weight, bias, stride, padding))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        signal, active, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        rows = _rows(gradient)
        grad_x = grad_weight = grad_bias = None
        if wants_x:
            grad_x = _channels(
                grouped_input_gradient(
                    rows, weight, signal, ctx.stride, ctx.padding, active.shape[1]
                )
            )
        if wants_weight:
            grad_weight = grouped_weight_gradient(
                active, rows, weight.shape[-1], ctx.stride, ctx.padding
            ).to(weight.dtype)
        if wants_bias:
            grad_bias = rows.sum((0, 1))
        return grad_x, grad_weight, grad_bias, None, None, None


class TritonGatedShortcut(torch.autograd.Function):
    """out * gate + shortcut in one pass: pooling, channel padding, product and sum.

    Shape: out (B, C, 1, T'), gate (B, C), x (B, C_in, 1, T) -> (B, C, 1, T').
    """

    @staticmethod
    def forward(ctx: Any, out: Tensor, gate: Tensor, x: Tensor, stride: int) -> Tensor:
        from ecgfounder_train.models.kernels import triton_kernels

        out_rows, x_rows, gate = _rows(out), _rows(x), gate.contiguous()
        batch, num_outputs, channels = out_rows.shape
        _, num_samples, channels_in = x_rows.shape
        result = torch.empty_like(out_rows)
        offset, before = (channels - channels_in) // 2, (stride - 1) // 2
        grid = (-(-channels // 64), -(-num_outputs // 32), batch)
        triton_kernels.gated_shortcut_forward[grid](
            out_rows, gate, x_rows, result, num_samples, num_outputs, channels, channels_in,
            offset, before, stride, 32, 64,
        )  # fmt: skip
        ctx.save_for_backward(out_rows, gate, x_rows)
        ctx.stride, ctx.offset, ctx.before = stride, offset, before
        return _channels(result)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        from ecgfounder_train.models.kernels import triton_kernels

        out, gate, x = ctx.saved_tensors
        batch, num_outputs, channels = out.shape
        _, num_samples, channels_in = x.shape
        grad_out, grad_gate = torch.empty_like(out), torch.empty_like(gate)
        # From three samples on the last one may be in no window.
        grad_x = torch.zeros_like(x) if ctx.stride > 2 else torch.empty_like(x)
        triton_kernels.gated_shortcut_backward[(-(-channels // 32), batch)](
            _rows(gradient), out, gate, x, grad_out, grad_gate, grad_x, num_samples, num_outputs,
            channels, channels_in, ctx.offset, ctx.before, ctx.stride, 32, 32,
        )  # fmt: skip
        return _channels(grad_out), grad_gate, _channels(grad_x), None


def _rows(x: Tensor) -> Tensor:
    """Return (B, C, 1, T) as (B, T, C), the layout of channels-last memory."""
    return x.squeeze(2).transpose(1, 2).contiguous()


def _channels(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2).unsqueeze(2)


_chosen: dict[tuple[Any, ...], bool] = {}
Trial = Callable[[], tuple[Tensor, ...]]


def faster_and_right(key: tuple[Any, ...], ours: Trial, torchs: Trial) -> bool:
    """Return whether our way beats torch's at the same work, measured once per key and process.

    Where the results differ by more than rounding, or ours fails, torch's stays and a warning says
    so: training must not depend on the compiler of the day. Where torch is set to be
    deterministic, nothing is timed and ours is taken if right: a resumed run must not round
    otherwise because of what a clock said.
    """
    if key not in _chosen:
        _chosen[key] = _measured(key, ours, torchs)
    return _chosen[key]


def _measured(key: tuple[Any, ...], ours: Trial, torchs: Trial) -> bool:
    try:
        found = ours()
    except Exception as error:
        warnings.warn(
            f"Triton's kernel for {key} failed ({type(error).__name__}), torch's is used instead. "
            "model.kernels=torch silences this.",
            stacklevel=2,
        )
        return False
    for a, b in zip(found, torchs(), strict=True):
        error_share = float((a - b).float().norm() / b.float().norm().clamp(min=1e-30))
        if not error_share < 0.02:
            warnings.warn(
                f"Triton's kernel for {key} is off by {error_share:.2g}, torch's is used instead.",
                stacklevel=2,
            )
            return False
    return torch.are_deterministic_algorithms_enabled() or _seconds(ours) < _seconds(torchs)


def _seconds(work: Trial) -> float:
    best = float("inf")
    for _ in range(5):
        _synchronize()
        start = time.perf_counter()
        work()
        _synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

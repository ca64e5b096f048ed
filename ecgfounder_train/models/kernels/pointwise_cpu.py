"""The pointwise convolution in float32 on a CPU: matrix products by oneDNN instead of MKL.

On an EPYC (one thread) oneDNN reaches 94-107 GFLOP/s where torch's own float32 products, which go
to MKL, reach 74-94; in bfloat16 torch takes oneDNN by itself.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class PointwiseProduct(torch.autograd.Function):
    """`F.linear` of float32 matrices.

    Shape: x (B, T, C_in), weight (C_out, C_in), bias (C_out,) -> (B, T, C_out).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, inputs = gradient.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            _product(rows, weight.t(), None).view(x.shape) if wants_x else None,
            # Long and thin: here MKL is the faster one up to a few hundred channels.
            _weight_product(rows, inputs) if wants_weight else None,
            rows.sum(0) if wants_bias else None,
        )


def _weight_product(rows: Tensor, inputs: Tensor) -> Tensor:
    if rows.shape[1] < 400:
        return rows.t() @ inputs
    return _product(rows.t(), inputs.t(), None)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # The operator behind torch.compile's linear layers on a CPU.
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product

"""Convolutions of Net1D and their kernels, by the fastest way each device has.

* `operations`: what the network calls; chooses by device and `model.kernels=auto|torch|triton`.
* `grouped_vector`: Swish and grouped convolution on a CPU, sixteen channels per group, by compiled
  loops (`grouped_rows`) over vectors (`vector_rows`) on torch's OpenMP threads (`openmp`). Other
  shapes and types are computed by torch.
* `gpu`, `triton_kernels`: on an NVIDIA GPU, chosen layer by layer where they measure faster.

All compute the same function of the same parameters: nothing here changes a state dict. A new
kernel gets its choice in `operations` and its comparison with float64 in the tests.
"""

from ecgfounder_train.models.kernels.operations import (
    Kernels,
    gated_shortcut,
    grouped_convolution,
    pointwise,
    same_max_pool,
    time_mean,
)

__all__ = [
    "Kernels",
    "gated_shortcut",
    "grouped_convolution",
    "pointwise",
    "same_max_pool",
    "time_mean",
]

"""The operations Net1D spends its time in, by the fastest way each device has.

* `operations`: what the network calls; chooses by device and `model.kernels=auto|torch|triton`.
* `grouped_cpu`: the grouped convolution on a CPU, with a weight gradient of its own.

All compute the same function of the same parameters: nothing here changes a state dict.
"""

from ecgfounder_train.models.kernels.operations import grouped_convolution, pointwise, time_mean

__all__ = ["grouped_convolution", "pointwise", "time_mean"]

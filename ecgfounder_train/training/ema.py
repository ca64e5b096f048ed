"""An exponential moving average of the weights, its half-life counted in samples."""

import copy

import torch
from torch import nn


class WeightAverage:
    """Keeps a second copy of a network that follows it slowly, buffers included.

    A half-life in samples keeps its meaning when the batch size changes; a decay per step does not.

    Args:
        model: The network to follow.
        half_life_samples: Samples after which half of the old average is forgotten.
    """

    def __init__(self, model: nn.Module, half_life_samples: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.half_life_samples = half_life_samples

    @torch.no_grad()
    def update(self, model: nn.Module, batch_samples: int, samples_seen: int) -> None:
        """Move the average towards `model` after an optimizer step.

        Early on the average covers what has been seen so far rather than the random start.
        """
        half_life = min(self.half_life_samples, max(samples_seen, batch_samples) / 4)
        weight = 1 - 0.5 ** (batch_samples / half_life)
        floating, moving, fixed, new = [], [], [], []
        averages = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                floating.append(averages[name])
                moving.append(value)
            else:
                fixed.append(averages[name])
                new.append(value)
        torch._foreach_lerp_(floating, moving, weight)
        for old, value in zip(fixed, new, strict=True):
            old.copy_(value)

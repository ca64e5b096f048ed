"""Crops of a window: a random one to train on, all of them to predict from."""

from typing import Any

import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError


def check_crops(crops: Any, num_samples: int) -> int:
    """Return a number of crops that a window divides into.

    Raises:
        UserError: It does not.
    """
    if type(crops) is not int or crops < 1 or num_samples % crops:
        raise UserError(
            f"crops={crops!r} does not divide a window of {num_samples} samples. Use 1 for whole "
            "windows, 4 for crops of 2.5 s of 10 s."
        )
    return crops


def random_crop(
    signal: Tensor, length: int, valid_start: Tensor, valid_num_samples: Tensor, drawn: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a crop of each signal at the place that `drawn` chooses, and where it begins.

    The crop is within the valid part, or contains all of it where that is the shorter one: no
    recording is ever reduced to its padding.

    Shape:
        signal: (B, L, T); valid_start, valid_num_samples: (B,) samples; drawn: (B,) in [0, 1).
        Returns: (B, L, length) and (B,) samples.
    """
    last_start = signal.shape[-1] - length
    ends = valid_start + valid_num_samples - length
    first = torch.minimum(valid_start, ends).clamp(0, last_start)
    last = torch.maximum(valid_start, ends).clamp(0, last_start)
    begin = torch.minimum(first + (drawn * (last - first + 1)).long(), last)
    time = begin[:, None] + torch.arange(length, device=signal.device)
    return signal.gather(2, time[:, None].expand(-1, signal.shape[1], -1)), begin


def all_crops(signal: Tensor, crops: int) -> Tensor:
    """Return the crops of each signal, one after another.

    Shape: (B, L, T) -> (B * crops, L, T / crops).
    """
    num_signals, num_leads, _ = signal.shape
    pieces = signal.reshape(num_signals, num_leads, crops, -1)
    return pieces.movedim(2, 1).flatten(0, 1)


def mean_over_crops(outputs: Tensor, crops: int) -> Tensor:
    """Return the mean output of each signal's crops.

    Shape: (B * crops, K) -> (B, K).
    """
    return outputs.float().reshape(-1, crops, outputs.shape[-1]).mean(1)

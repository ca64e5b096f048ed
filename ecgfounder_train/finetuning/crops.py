"""Pieces of a window: one at random to train on, all of them to answer with."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.counter_rng import uniforms


def check_crops(crops: Any, num_samples: int) -> int:
    """Return a number of pieces that a window divides into.

    Raises:
        UserError: It does not.
    """
    if type(crops) is not int or crops < 1 or num_samples % crops:
        raise UserError(
            f"crops={crops!r} does not divide a window of {num_samples} samples. Use 1 for whole "
            "windows, 4 for 2.5 s pieces of 10 s."
        )
    return crops


def random_crop(signal: Tensor, batch: dict[str, Any], crops: int, seed: int) -> Tensor:
    """Return one piece of each signal, drawn by (seed, epoch, slot) within its valid part.

    Shape: (B, L, T) -> (B, L, T / crops).
    """
    if crops == 1:
        return signal
    length = signal.shape[-1] // crops
    draw = uniforms(seed, batch["epoch"], batch["slots"], "crop", 1)[:, 0]
    first = batch["valid_start"].cpu().numpy()
    room = np.maximum(batch["valid_num_samples"].cpu().numpy() - length, 0)
    start = first + (draw * (room + 1)).astype(np.int64)
    # A short record that is padded in front may leave no whole piece behind its start.
    start = np.minimum(start, signal.shape[-1] - length)
    time = torch.as_tensor(start, device=signal.device)[:, None] + torch.arange(
        length, device=signal.device
    )
    return signal.gather(2, time[:, None, :].expand(-1, signal.shape[1], -1))


def all_crops(signal: Tensor, crops: int) -> Tensor:
    """Return the pieces of each signal behind each other.

    Shape: (B, L, T) -> (B * crops, L, T / crops).
    """
    num_signals, num_leads, _ = signal.shape
    pieces = signal.reshape(num_signals, num_leads, crops, -1)
    return pieces.movedim(2, 1).flatten(0, 1)


def mean_over_crops(outputs: Tensor, crops: int) -> Tensor:
    """Return one answer per signal: the mean of its pieces'.

    Shape: (B * crops, K) -> (B, K).
    """
    return outputs.float().reshape(-1, crops, outputs.shape[-1]).mean(1)

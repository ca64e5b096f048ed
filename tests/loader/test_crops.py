"""Crops: random ones depend on the slot alone, all of them are the window."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.counter_rng import uniforms
from ecgfounder_train.loader.crops import all_crops, check_crops, mean_over_crops, random_crop

VALID_START = torch.tensor([0, 0, 0, 100, 0, 390])
VALID_NUM_SAMPLES = torch.tensor([400, 400, 150, 120, 50, 10])


def crop_of(signal: Tensor, rows: list[int], epoch: int) -> Tensor:
    drawn = torch.from_numpy(uniforms(1, epoch, np.array(rows), "crop", 1)[:, 0])
    return random_crop(signal[rows], 100, VALID_START[rows], VALID_NUM_SAMPLES[rows], drawn)[0]


def test_random_crops_depend_on_the_slot_alone_and_stay_in_the_recording() -> None:
    signal = torch.arange(400.0).expand(6, 2, 400).contiguous()
    crop = crop_of(signal, list(range(6)), 3)
    assert crop.shape == (6, 2, 100)
    assert torch.equal(crop.diff(dim=2), torch.ones(6, 2, 99))
    first = crop[:, 0, 0]
    assert 0 <= first[2] <= 50 and 100 <= first[3] <= 120
    assert first[4] == 0 and first[5] == 300
    assert torch.equal(crop_of(signal, [2], 3), crop[2:3])
    assert not torch.equal(crop_of(signal, list(range(6)), 4), crop)


def test_four_crops_are_the_whole_window_in_order() -> None:
    signal = torch.randn(3, 2, 40)
    pieces = all_crops(signal, 4)
    assert torch.equal(pieces.reshape(3, 4, 2, 10).movedim(1, 2).reshape(3, 2, 40), signal)
    outputs = torch.randn(12, 5)
    torch.testing.assert_close(mean_over_crops(outputs, 4)[1], outputs[4:8].mean(0))
    for bad in (0, 3, 4.0, True):
        with pytest.raises(UserError, match="does not divide a window of 1000"):
            check_crops(bad, 1000)

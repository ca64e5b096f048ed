"""`loss.pos_weight=split` is what the training split says, and nothing else."""

import numpy as np
import pytest
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.split_weights import (
    LARGEST_POS_WEIGHT,
    create_split_loss,
    split_pos_weight,
)


def test_split_weight_is_observed_negatives_per_positive_of_the_training_part(
    tiny_shards: ShardSet,
) -> None:
    samples = [tiny_shards.read_sample(int(row)) for row in tiny_shards.rows("train")]
    labels = np.stack([sample.labels for sample in samples])
    seen = labels[:, 1].astype(bool)
    positives = ((labels[:, 0] == 1) & seen).sum(0)
    negatives = seen.sum(0) - positives
    weights = split_pos_weight(tiny_shards)
    assert (positives > 0).any()
    for weight, positive, negative in zip(weights, positives, negatives, strict=True):
        defined = positive > 0 and negative > 0
        assert weight == (min(negative / positive, LARGEST_POS_WEIGHT) if defined else 1.0)


def test_split_weight_reaches_the_loss(tiny_shards: ShardSet) -> None:
    loss = create_split_loss({"name": "bce", "pos_weight": "split"}, tiny_shards)
    num_labels = len(tiny_shards.manifest.labels)
    ones = torch.ones(1, num_labels)
    expected = np.log(2) * split_pos_weight(tiny_shards)
    assert loss(0 * ones, ones, ones)[0].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("weight", "message"),
    [("balanced", "none of: a number"), ([1.0, 2.0], "has 2 numbers for")],
)
def test_a_weight_that_fits_no_label_is_refused(
    tiny_shards: ShardSet, weight: object, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        create_split_loss({"name": "bce", "pos_weight": weight}, tiny_shards)

"""The load half of the preprocessing: normalisation, choice of leads, augmentation."""

from typing import Any

import numpy as np
import pytest
import tiny_set
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader import SampleReader
from ecgfounder_train.loader.batches import EvaluationBatches, RankShape, TrainingBatches
from ecgfounder_train.loader.epoch_plan import EpochPlan, Position
from ecgfounder_train.loader.transforms import Augmentation, BatchTransform
from ecgfounder_train.records import STANDARD_LEADS, LoadNormalisation, normalise
from ecgfounder_train.shards import ShardSet

JOINT = LoadNormalisation()
EVERYTHING = Augmentation(
    circular_shift=1.0, lead_gain=0.2, amplitude_gain=0.2, lead_dropout=0.2, mixup=0.4
)


@pytest.fixture(scope="module")
def batch(tiny_shards: ShardSet) -> dict[str, Any]:
    """The whole validation split, padded records among it, and two padding rows."""
    rows = tiny_shards.rows("val")
    (one,) = EvaluationBatches(SampleReader(tiny_shards), rows, RankShape(len(rows) + 2))
    assert (one["valid_num_samples"][:-2] < 1000).any()
    return {**one, "slots": np.arange(len(rows) + 2), "epoch": 3}


def training_batch(shards: ShardSet, shape: RankShape, start: Position) -> dict[str, Any]:
    plan = EpochPlan(len(shards.rows("train")), 0, shards.manifest.fingerprint)
    reader = SampleReader(shards)
    until = start.samples_seen(plan.num_samples) + 1
    return next(iter(TrainingBatches(reader, shards.rows("train"), plan, shape, start, until)))


PROFILES = {
    name: tiny_set.profile(name).load_normalisation
    for name in ("paper", "author", "official", "zscore")
} | {
    "none": LoadNormalisation("none"),
    "clipped per lead": LoadNormalisation("per_lead", clip=1.5),
    "joint, not centred": LoadNormalisation("joint", centre=False),
}


@pytest.mark.parametrize("how", PROFILES.values(), ids=PROFILES.keys())
def test_device_normalises_like_the_reference(
    batch: dict[str, Any], how: LoadNormalisation
) -> None:
    signal, _, _ = BatchTransform(STANDARD_LEADS, how)(batch, training=False)
    # numpy() of the padding rows divides 0 by eps, which is 0 too.
    reference = normalise(
        batch["ecg"].numpy(),
        batch["stats"].numpy(),
        batch["valid_start"].numpy(),
        batch["valid_num_samples"].numpy(),
        how,
    )
    assert np.abs(reference).max() > 1
    np.testing.assert_allclose(signal.numpy(), reference, atol=2e-5, rtol=2e-6)
    for row, count in enumerate(batch["valid_num_samples"].tolist()):
        assert not signal[row, :, count:].any()


@pytest.mark.parametrize("kind", ["joint", "per_lead", "none"])
def test_single_lead_is_normalised_by_its_own_statistics(batch: dict[str, Any], kind: str) -> None:
    how = LoadNormalisation(kind)
    signal, _, _ = BatchTransform(STANDARD_LEADS, how, "lead_I")(batch, training=False)
    reference = normalise(
        batch["ecg"].numpy()[:, :1],
        batch["stats"].numpy()[:, :1],
        batch["valid_start"].numpy(),
        batch["valid_num_samples"].numpy(),
        how,
    )
    np.testing.assert_allclose(signal.numpy(), reference, atol=2e-5, rtol=2e-6)


SIGNED = {
    "I": 1,
    "aVL": 1,
    "aVR": -1,
    "II": 1,
    "III": -1,
    "aVF": 1,
    "-aVF": -1,
}


def drawn_leads(batch: dict[str, Any], choice: str, training: bool = True) -> list[str]:
    """Return which signed lead each row got, found by comparing signals."""
    transform = BatchTransform(STANDARD_LEADS, LoadNormalisation("none"), choice)
    signal, _, _ = transform(batch, training=training)
    names = []
    for row in range(len(signal)):
        count = int(batch["valid_num_samples"][row])
        found = [
            name
            for name, sign in SIGNED.items()
            if np.allclose(
                signal[row, 0, :count].numpy(),
                sign
                * batch["ecg"][row, STANDARD_LEADS.index(name.strip("-")), :count].numpy()
                / 1000,
                atol=1e-6,
            )
        ]
        assert len(found) == 1, found
        names += found
    return names


def many_draws(batch: dict[str, Any], choice: str) -> dict[str, float]:
    rows = int(batch["present"].sum())
    kept = {k: v[:rows] if k not in ("epoch", "slots") else v for k, v in batch.items()}
    names: list[str] = []
    for epoch in range(40):
        names += drawn_leads({**kept, "epoch": epoch, "slots": np.arange(rows)}, choice)
    return {name: names.count(name) / len(names) for name in SIGNED}


def test_published_choice_keeps_lead_i_half_of_the_time(batch: dict[str, Any]) -> None:
    shares = many_draws(batch, "published")
    assert abs(shares.pop("I") - 1 / 2) < 0.06
    assert all(abs(share - 1 / 12) < 0.04 for share in shares.values()), shares


def test_uniform_choice_draws_from_seven(batch: dict[str, Any]) -> None:
    shares = many_draws(batch, "uniform")
    assert all(abs(share - 1 / 7) < 0.04 for share in shares.values()), shares


@pytest.mark.parametrize("choice", ["lead_I", "published", "uniform"])
def test_evaluation_takes_lead_i(batch: dict[str, Any], choice: str) -> None:
    rows = int(batch["present"].sum())
    kept = {k: v[:rows] for k, v in batch.items() if k not in ("epoch", "slots")}
    assert set(drawn_leads(kept, choice, training=False)) == {"I"}


def test_leads_are_found_by_name_in_any_stored_order(batch: dict[str, Any]) -> None:
    turned = {**batch, "ecg": batch["ecg"].flip(1), "stats": batch["stats"].flip(1)}
    straight = BatchTransform(STANDARD_LEADS, JOINT, "uniform")(batch, training=True)[0]
    flipped = BatchTransform(STANDARD_LEADS[::-1], JOINT, "uniform")(turned, training=True)[0]
    assert torch.equal(straight, flipped)


def test_choice_among_leads_that_are_not_stored_is_refused() -> None:
    with pytest.raises(UserError, match="aVF"):
        BatchTransform(("I", "II", "III", "aVR", "aVL"), JOINT, "published")
    with pytest.raises(UserError, match="Valid: all, lead_I, published, uniform"):
        BatchTransform(STANDARD_LEADS, JOINT, "lead_II")


@pytest.mark.parametrize("choice", ["all", "published", "uniform"])
def test_augmentation_depends_on_seed_epoch_and_slot_only(
    tiny_shards: ShardSet, choice: str
) -> None:
    # Mixup has a partner, so it is another matter; see below.
    augmentation = Augmentation(1.0, lead_gain=0.2, amplitude_gain=0.2, lead_dropout=0.2)
    transform = BatchTransform(STANDARD_LEADS, JOINT, choice, augmentation, seed=4)
    start = Position(2, 16)
    whole = training_batch(tiny_shards, RankShape(16), start)
    reference, *_ = transform(whole, training=True)
    torch.manual_seed(77)  # global generators have no say
    np.random.seed(77)  # noqa: NPY002
    for shape, part in [
        (RankShape(8, 1, 0, 2), slice(0, 8)),
        (RankShape(8, 1, 1, 2), slice(8, 16)),
        (RankShape(2, 1, 5, 8), slice(10, 12)),
        (RankShape(4, 4), slice(0, 4)),
    ]:
        signal, *_ = transform(training_batch(tiny_shards, shape, start), training=True)
        assert torch.equal(signal, reference[part])
    later = training_batch(tiny_shards, RankShape(4), Position(2, 24))
    assert torch.equal(transform(later, training=True)[0], reference[8:12])

    plain, *_ = BatchTransform(STANDARD_LEADS, JOINT, choice, seed=4)(whole, training=False)
    assert all(not torch.equal(a, b) for a, b in zip(plain, reference, strict=True))
    for changed in ({**whole, "epoch": 3}, {**whole, "slots": whole["slots"] + 1000}):
        assert not torch.equal(transform(changed, training=True)[0], reference)
    reseeded = BatchTransform(STANDARD_LEADS, JOINT, choice, augmentation, seed=5)
    assert not torch.equal(reseeded(whole, training=True)[0], reference)


def test_everything_off_changes_nothing(batch: dict[str, Any]) -> None:
    transform = BatchTransform(STANDARD_LEADS, JOINT)
    for one, other in zip(transform(batch, True), transform(batch, False), strict=True):
        assert torch.equal(one, other)


def test_rotation_keeps_the_samples_and_lead_order(batch: dict[str, Any]) -> None:
    plain = BatchTransform(STANDARD_LEADS, JOINT)(batch, True)[0]
    turned = BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(circular_shift=1.0))(
        batch, True
    )[0]
    shifts = set()
    for one, other in zip(plain[:-2], turned[:-2], strict=True):
        found = [s for s in range(1000) if torch.equal(one.roll(-s, -1), other)]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 20 and max(shifts) > 700


def test_gains_spread_as_asked(batch: dict[str, Any]) -> None:
    plain = BatchTransform(STANDARD_LEADS, JOINT)(batch, True)[0][:-2]

    def log_gains(augmentation: Augmentation) -> np.ndarray:
        scaled = BatchTransform(STANDARD_LEADS, JOINT, "all", augmentation)(batch, True)[0][:-2]
        return (scaled.norm(dim=-1) / plain.norm(dim=-1)).log().numpy()

    per_lead = log_gains(Augmentation(lead_gain=0.2))
    assert 0.16 < per_lead.std() < 0.24 and per_lead.std(axis=1).min() > 0.05
    common = log_gains(Augmentation(amplitude_gain=0.2))
    assert common.std(axis=1).max() < 1e-5 and 0.1 < common.std() < 0.35


def test_silenced_leads_are_zero_at_the_asked_rate(batch: dict[str, Any]) -> None:
    augmentation = Augmentation(lead_dropout=0.25)
    signal = BatchTransform(STANDARD_LEADS, JOINT, "all", augmentation)(batch, True)[0][:-2]
    silent = (signal == 0).all(-1).float().mean().item()
    assert 0.15 < silent < 0.35


def test_mixup_mixes_signals_and_labels_with_the_same_weight(batch: dict[str, Any]) -> None:
    plain, targets, observed = BatchTransform(STANDARD_LEADS, JOINT)(batch, True)
    transform = BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(mixup=0.5))
    mixed, soft, mask = transform(batch, True)
    num_mixed = 0
    for row in range(1, int(batch["present"].sum())):
        difference = plain[row] - plain[row - 1]
        weight = ((mixed[row] - plain[row - 1]) * difference).sum() / difference.square().sum()
        expected = torch.lerp(plain[row - 1], plain[row], weight)
        torch.testing.assert_close(mixed[row], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            soft[row], torch.lerp(targets[row - 1], targets[row], weight), atol=1e-4, rtol=0
        )
        if 0.001 < weight < 0.999:
            num_mixed += 1
            assert torch.equal(mask[row], observed[row] * observed[row - 1])
    assert num_mixed > 15


def test_padding_rows_do_not_contaminate_mixup(batch: dict[str, Any]) -> None:
    # Row 0's partner is the last row, which is padding.
    plain, targets, observed = BatchTransform(STANDARD_LEADS, JOINT)(batch, True)
    transform = BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(mixup=0.5))
    mixed, soft, mask = transform(batch, True)
    assert torch.equal(mixed[0], plain[0])
    assert torch.equal(soft[0], targets[0]) and torch.equal(mask[0], observed[0])
    assert not mask[-2:].any()


def test_all_augmentations_together_stay_finite_and_within_the_mask(
    batch: dict[str, Any],
) -> None:
    for epoch in range(20):
        transform = BatchTransform(STANDARD_LEADS, JOINT, "all", EVERYTHING)
        signal, targets, mask = transform({**batch, "epoch": epoch}, True)
        assert signal.isfinite().all()
        assert ((targets >= 0) & (targets <= 1)).all()
        assert (mask <= batch["observed"]).all()


@pytest.mark.parametrize(
    "wrong", [{"circular_shift": 2.0}, {"mixup": -1.0}, {"lead_dropuot": 0.1}, {"mixup": "a"}]
)
def test_wrong_strengths_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"augmentation.{next(iter(wrong))}"):
        Augmentation.from_config(wrong)

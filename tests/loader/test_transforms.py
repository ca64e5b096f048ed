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
NOISE = {"white_noise": 0.05, "baseline_wander": 0.1, "mains_noise": 0.03, "muscle_noise": 0.1}
EVERYTHING = Augmentation(
    1.0, lead_gain=0.2, amplitude_gain=0.2, lead_dropout=0.2, mixup=0.4, crop=0.9, **NOISE
)
FS = 500.0


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
    transform = BatchTransform(STANDARD_LEADS, JOINT, choice, EVERYTHING, seed=4, fs=FS)
    start = Position(2, 16)
    whole = training_batch(tiny_shards, RankShape(16), start)
    reference, targets, mask = transform(whole, training=True)
    assert not torch.equal(targets, whole["targets"].float())  # mixed
    torch.manual_seed(77)  # global generators have no say
    np.random.seed(77)  # noqa: NPY002
    for shape, part in [
        (RankShape(8, 1, 0, 2), slice(0, 8)),
        (RankShape(8, 1, 1, 2), slice(8, 16)),
        (RankShape(2, 1, 5, 8), slice(10, 12)),
        (RankShape(4, 4), slice(0, 4)),
    ]:
        found = transform(training_batch(tiny_shards, shape, start), training=True)
        for one, expected in zip(found, (reference, targets, mask), strict=True):
            assert torch.equal(one, expected[part])
    later = training_batch(tiny_shards, RankShape(4), Position(2, 24))
    assert torch.equal(transform(later, training=True)[0], reference[8:12])

    plain, *_ = BatchTransform(STANDARD_LEADS, JOINT, choice, seed=4)(whole, training=False)
    assert plain.shape[-1] == 1000 and reference.shape[-1] == 900
    assert all(not torch.equal(a[:, :900], b) for a, b in zip(plain, reference, strict=True))
    for changed in ({**whole, "epoch": 3}, {**whole, "slots": whole["slots"] + 1000}):
        assert not torch.equal(transform(changed, training=True)[0], reference)
    reseeded = BatchTransform(STANDARD_LEADS, JOINT, choice, EVERYTHING, seed=5, fs=FS)
    assert not torch.equal(reseeded(whole, training=True)[0], reference)


def test_everything_off_changes_nothing(batch: dict[str, Any]) -> None:
    transform = BatchTransform(STANDARD_LEADS, JOINT)
    for one, other in zip(transform(batch, True), transform(batch, False), strict=True):
        assert torch.equal(one, other)


def test_a_crop_is_a_piece_of_the_normalised_window_with_labels_unchanged(
    batch: dict[str, Any],
) -> None:
    transform = BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(crop=0.25))
    assert transform.training_samples(1000) == 250
    plain, targets, mask = BatchTransform(STANDARD_LEADS, JOINT)(batch, True)
    begins = set()
    for epoch in range(3):
        cropped, same_targets, same_mask = transform({**batch, "epoch": epoch}, True)
        assert cropped.shape == (*plain.shape[:2], 250)
        assert torch.equal(same_targets, targets) and torch.equal(same_mask, mask)
        for row in range(int(batch["present"].sum())):
            pieces = plain[row].unfold(-1, 250, 1).movedim(0, 1)
            (found,) = (pieces == cropped[row]).flatten(1).all(1).nonzero(as_tuple=True)
            assert len(found) == 1
            begins.add(int(found[0]))
    assert min(begins) < 100 and max(begins) > 650 and len(begins) > 30


@pytest.mark.parametrize(("start", "count"), [(0, 300), (700, 300), (120, 260), (400, 90)])
def test_a_crop_never_shows_more_padding_than_it_must(
    batch: dict[str, Any], start: int, count: int
) -> None:
    rows = len(batch["slots"])
    short = {
        **batch,
        "ecg": torch.full_like(batch["ecg"], 500),
        "valid_start": torch.full((rows,), start),
        "valid_num_samples": torch.full((rows,), count),
    }
    how = LoadNormalisation("none")
    cropped, *_ = BatchTransform(STANDARD_LEADS, how, "all", Augmentation(crop=0.25))(short, True)
    assert ((cropped != 0).sum(-1) == min(count, 250)).all()


def test_evaluation_sees_whole_windows_whatever_the_crop(batch: dict[str, Any]) -> None:
    transform = BatchTransform(STANDARD_LEADS, JOINT, "all", EVERYTHING, fs=FS)
    whole = BatchTransform(STANDARD_LEADS, JOINT)(batch, training=False)
    for one, other in zip(transform(batch, training=False), whole, strict=True):
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


def test_mixup_mixes_signals_and_labels_of_a_pair_with_the_same_weight(
    batch: dict[str, Any],
) -> None:
    plain, targets, observed = BatchTransform(STANDARD_LEADS, JOINT)(batch, True)
    transform = BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(mixup=0.5))
    mixed, soft, mask = transform(batch, True)
    num_mixed = 0
    for row in range(int(batch["present"].sum()) // 2 * 2):
        other = row ^ 1
        difference = plain[row] - plain[other]
        weight = ((mixed[row] - plain[other]) * difference).sum() / difference.square().sum()
        expected = torch.lerp(plain[other], plain[row], weight)
        torch.testing.assert_close(mixed[row], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            soft[row], torch.lerp(targets[other], targets[row], weight), atol=1e-4, rtol=0
        )
        if 0.001 < weight < 0.999:
            num_mixed += 1
            assert torch.equal(mask[row], observed[row] * observed[other])
    assert num_mixed > 12


def test_padding_rows_do_not_contaminate_mixup(batch: dict[str, Any]) -> None:
    last = int(batch["present"].sum()) - 1
    # So that the last sample's partner is padding; the first one's may be in another batch.
    slots = batch["slots"] + (1 if last % 2 else 2)
    shifted = {**batch, "slots": slots}
    plain, targets, observed = BatchTransform(STANDARD_LEADS, JOINT)(shifted, True)
    transform = BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(mixup=0.5))
    mixed, soft, mask = transform(shifted, True)
    assert slots[last] % 2 == 0
    for row in [last, *([0] if slots[0] % 2 else [])]:
        assert torch.equal(mixed[row], plain[row])
        assert torch.equal(soft[row], targets[row]) and torch.equal(mask[row], observed[row])
    assert not mask[-2:].any()


def noise_of(batch: dict[str, Any], fs: float = FS, **strengths: float) -> torch.Tensor:
    """Return the noise alone, in mV, of the recordings that are valid throughout."""
    none = LoadNormalisation("none")
    rows = (batch["valid_num_samples"] == batch["ecg"].shape[-1]).nonzero()[:, 0]
    plain = BatchTransform(STANDARD_LEADS, none)(batch, True)[0]
    noisy = BatchTransform(STANDARD_LEADS, none, "all", Augmentation(**strengths), 0, fs)
    return (noisy(batch, True)[0] - plain)[rows]


def power(noise: torch.Tensor, low: float, high: float) -> float:
    """Return the share of the noise's power between two frequencies, taken as sampled at `FS`."""
    found = torch.fft.rfft(noise.double()).abs().square().sum((0, 1))
    frequency = torch.fft.rfftfreq(noise.shape[-1], 1 / FS)
    return float(found[(frequency >= low) & (frequency < high)].sum() / found.sum())


@pytest.mark.parametrize("name", NOISE)
def test_noise_is_as_strong_as_asked_and_no_two_recordings_have_the_same(
    batch: dict[str, Any], name: str
) -> None:
    many = torch.cat([noise_of({**batch, "epoch": epoch}, **{name: 0.2}) for epoch in range(8)])
    strengths = many.square().mean((1, 2)).sqrt()
    # Evenly between 0 and 0.2 mV.
    assert strengths.max() < 0.4 and strengths.min() < 0.03
    assert 0.05 < strengths.mean() < 0.15
    assert many.mean().abs() < 0.02
    assert len({round(float(value), 6) for value in many[:, 0, 10]}) > 0.9 * len(many)
    twice = torch.cat([noise_of({**batch, "epoch": epoch}, **{name: 0.4}) for epoch in range(8)])
    torch.testing.assert_close(twice, 2 * many, atol=1e-5, rtol=1e-4)


def test_each_noise_has_its_place_in_the_spectrum(batch: dict[str, Any]) -> None:
    assert power(noise_of(batch, baseline_wander=0.2), 0, 2.0) > 0.95
    assert power(noise_of(batch, mains_noise=0.2), 59, 61) > 0.95
    assert power(noise_of(batch, mains_noise=0.2, mains_hz=50.0), 49, 51) > 0.95
    assert power(noise_of(batch, muscle_noise=0.2), 20, 251) > 0.95
    assert 0.35 < power(noise_of(batch, white_noise=0.2), 0, 125) < 0.65


def test_a_burst_of_muscle_noise_is_over_before_the_signal_is(batch: dict[str, Any]) -> None:
    # 1000 samples, as if at 50 Hz: 20 s.
    noise = noise_of(batch, fs=50.0, muscle_noise=0.2)
    pieces = noise.reshape(*noise.shape[:2], 20, -1).square().mean((1, 3)).sqrt()
    loud = pieces > 0.05 * pieces.amax(1, keepdim=True)
    assert (loud.sum(1) < 15).all()
    assert len(set(pieces.argmax(1).tolist())) > 5


def test_white_noise_is_normal_and_independent_between_leads_and_in_time(
    batch: dict[str, Any],
) -> None:
    noise = noise_of(batch, white_noise=0.2)
    noise = noise / noise.square().mean((1, 2), keepdim=True).sqrt()
    assert abs(float(noise.mean())) < 0.01
    assert float((noise**4).mean()) == pytest.approx(3.0, abs=0.1)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.03
    assert abs(float((noise[..., 1:] * noise[..., :-1]).mean())) < 0.01
    assert abs(float((noise[0] * noise[1]).mean())) < 0.05


def test_noise_leaves_the_statistics_and_the_padding_alone(batch: dict[str, Any]) -> None:
    plain = BatchTransform(STANDARD_LEADS, JOINT)(batch, True)[0]
    transform = BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(**NOISE), 0, FS)
    noisy = transform(batch, True)[0]
    for row, count in enumerate(batch["valid_num_samples"].tolist()):
        assert not noisy[row, :, count:].any()
    rows = (batch["valid_num_samples"] == batch["ecg"].shape[-1]).nonzero()[:, 0]
    mean, std = batch["stats"][rows, :, 0], batch["stats"][rows, :, 1]
    spread = (std.square() + (mean - mean.mean(1, keepdim=True)).square()).mean(1).sqrt()
    torch.testing.assert_close(
        (noisy - plain)[rows] * spread[:, None, None], noise_of(batch, **NOISE), atol=1e-4, rtol=0
    )


def test_a_hum_that_the_shards_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match="60 Hz cannot occur in shards of 100 Hz"):
        BatchTransform(STANDARD_LEADS, JOINT, "all", Augmentation(mains_noise=0.1), fs=100.0)


def test_all_augmentations_together_stay_finite_and_within_the_mask(
    batch: dict[str, Any],
) -> None:
    for epoch in range(20):
        transform = BatchTransform(STANDARD_LEADS, JOINT, "all", EVERYTHING, fs=FS)
        signal, targets, mask = transform({**batch, "epoch": epoch}, True)
        assert signal.isfinite().all()
        assert ((targets >= 0) & (targets <= 1)).all()
        assert (mask <= batch["observed"]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"circular_shift": 2.0},
        {"crop": 1.5},
        {"mixup": -1.0},
        {"lead_dropuot": 0.1},
        {"mixup": "a"},
        {"white_noise": -0.1},
        {"muscle_noise": -0.1},
        {"mains_hz": 55.0},
    ],
)
def test_wrong_strengths_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"augmentation.{next(iter(wrong))}"):
        Augmentation.from_config(wrong)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("lead_choice", ["all", "published"])
@pytest.mark.parametrize("kind", ["joint", "per_lead", "none"])
def test_everything_is_made_on_the_device_of_the_batch(
    batch: dict[str, Any], kind: str, lead_choice: str, training: bool
) -> None:
    # A device without memory, which every machine has: as with a GPU, mixing its tensors with the
    # CPU's is an error, and so is looking at a value, for which a GPU would have to be waited for.
    there = {
        name: value.to("meta") if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    transform = BatchTransform(
        STANDARD_LEADS, LoadNormalisation(kind), lead_choice, EVERYTHING, fs=FS
    )
    made = transform(there, training)
    assert [tensor.device.type for tensor in made] == ["meta"] * 3
    assert [t.shape for t in made] == [t.shape for t in transform(batch, training)]

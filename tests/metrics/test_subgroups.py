"""Subgroups: each is the metric of its own records, with its own patients."""

import numpy as np
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import (
    age_bands,
    ranking_intervals,
    rate_names,
    subgroup_intervals,
)


def test_each_group_is_the_metric_of_its_own_records(rng, clustered):
    data = clustered(rng, 200, 3, observed=0.9)
    sex = np.where(data.patients % 2 == 0, "F", "M").astype(object)
    sex[:5] = None
    site = rng.choice(["I0001", "I0002"], len(sex))
    groups = subgroup_intervals(
        data.logits,
        data.targets,
        data.observed,
        patients=data.patients,
        groups={"sex": sex, "site": site},
    )
    names = [(group.attribute, group.value) for group in groups]
    assert names == [
        ("sex", "F"),
        ("sex", "M"),
        ("sex", "unknown"),
        ("site", "I0001"),
        ("site", "I0002"),
    ]
    chosen = site == "I0002"
    alone = ranking_intervals(
        data.logits[chosen],
        data.targets[chosen],
        data.observed[chosen],
        patients=data.patients[chosen],
    )
    last = groups[-1]
    np.testing.assert_array_equal(last.auroc.value, alone.auroc.value)
    np.testing.assert_array_equal(last.auroc.lower, alone.auroc.lower)
    np.testing.assert_array_equal(last.average_precision.upper, alone.average_precision.upper)
    assert last.num_records == chosen.sum()
    assert last.num_patients == len(set(data.patients[chosen].tolist()))
    assert groups[2].num_records == 5
    assert np.isnan(groups[2].auroc.lower).all(), "two patients have no interval"


def test_whole_set_is_averaged_over_the_groups_labels(rng, clustered):
    data = clustered(rng, 300, 3)
    old = data.patients >= 150
    data.targets[old, 1] = 0
    options = {"patients": data.patients}
    whole = ranking_intervals(data.logits, data.targets, **options)
    young_group, old_group = subgroup_intervals(
        data.logits,
        data.targets,
        groups={"age": age_bands(np.where(old, 70, 30))},
        whole=whole,
        **options,
    )
    assert (young_group.value, old_group.value) == ("18 to 39", "65 to 79")
    assert old_group.auroc.macro().num_labels == 2
    assert old_group.auroc_whole.num_labels == 2
    assert old_group.auroc_whole.value == pytest.approx(whole.auroc.value[[0, 2]].mean())
    assert young_group.auroc_whole == whole.auroc.macro()


def test_ages_and_rates_are_named_and_ordered():
    ages = [0, 17.9, 18, 40, 64.9, 65, 79.9, 80, 90, np.nan]
    assert age_bands(ages) == [
        "under 18",
        "under 18",
        "18 to 39",
        "40 to 64",
        "40 to 64",
        "65 to 79",
        "65 to 79",
        "80 and over",
        "80 and over",
        "unknown",
    ]
    assert rate_names([500, 257.5, np.nan]) == ["500 Hz", "257.5 Hz", "unknown"]
    groups = subgroup_intervals(
        np.zeros((6, 1)),
        np.zeros((6, 1)),
        patients=np.arange(6),
        groups={
            "rate": rate_names([1000, np.nan, 500, 250, 500, 257]),
            "age": age_bands([90, 5, 70, 20, 50, np.nan]),
        },
    )
    assert [group.value for group in groups] == [
        "250 Hz",
        "257 Hz",
        "500 Hz",
        "1000 Hz",
        "unknown",
        "under 18",
        "18 to 39",
        "40 to 64",
        "65 to 79",
        "80 and over",
        "unknown",
    ]


def test_attribute_of_another_length_is_refused():
    with pytest.raises(UserError, match="3 values of sex for 4 records"):
        subgroup_intervals(
            np.zeros((4, 1)), np.zeros((4, 1)), patients=np.arange(4), groups={"sex": ["F"] * 3}
        )


def test_difference_to_the_rest_covers_and_does_not_count_shared_patients_twice(rng):
    inside, widths = [], []
    for _ in range(150):
        patients = np.repeat(np.arange(160), 2)
        targets = np.repeat(rng.random((160, 2)) < 0.3, 2, 0)
        logits = np.repeat(rng.normal(size=(160, 2)), 2, 0) + 0.2 * rng.normal(size=(320, 2))
        logits += 3 * targets
        # Every patient has a record at both sites: nearly the same scores, so nearly no difference.
        site = ["A", "B"] * 160
        groups = subgroup_intervals(logits, targets, patients=patients, groups={"site": site})
        difference, lower, upper = groups[0].auroc_difference
        inside.append(lower <= 0 <= upper)
        apart = subgroup_intervals(logits, targets, patients=np.arange(320), groups={"site": site})[
            0
        ].auroc_difference
        widths.append((upper - lower) / (apart[2] - apart[1]))
        assert difference == pytest.approx(groups[0].auroc_group.value - groups[0].auroc_rest.value)
    assert np.mean(inside) >= 0.92
    assert np.mean(widths) < 0.9, "the two sites' errors are nearly the same"

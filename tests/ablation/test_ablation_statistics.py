"""Patients and seeds together, the law, and words that claim no more than both allow."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from ecgfounder_train.ablation.learning_rates import RatePoint, fit_rate_rule
from ecgfounder_train.ablation.scaling import fit_power_law, why_no_law
from ecgfounder_train.ablation.statistics import (
    Compared,
    Macro,
    compare_variants,
    macro_aurocs,
    pooled_spread,
)
from ecgfounder_train.ablation.wording import conclusion
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.metrics import RunScores, clusters_from_keys, compare_runs, ranking_intervals

NUM_PATIENTS = 300


def scores(seed: int, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, targets and observed of two records per patient and four labels."""
    rng = np.random.default_rng(0)
    targets = (rng.random((2 * NUM_PATIENTS, 4)) < [0.5, 0.3, 0.2, 0.005]).astype(np.uint8)
    observed = (rng.random(targets.shape) < 0.9).astype(np.uint8)
    shared = np.repeat(rng.normal(size=(NUM_PATIENTS, 4)), 2, axis=0)
    own = np.random.default_rng(seed + 1).normal(size=targets.shape)
    return strength * targets + shared + own, targets, observed


CLUSTERS = clusters_from_keys([f"p{row // 2}" for row in range(2 * NUM_PATIENTS)])
ALL = {"all": np.ones(4, np.bool_)}


def run(seed: int, strength: float = 1.0) -> Macro:
    return macro_aurocs(*scores(seed, strength), CLUSTERS, ALL)["all"]


def test_macro_and_its_error_are_those_of_the_interval_functions() -> None:
    found = run(1)
    logits, targets, observed = scores(1)
    expected = ranking_intervals(logits, targets, observed, patients=CLUSTERS).auroc.macro()
    assert found.num_labels == expected.num_labels == 3  # one label has too few patients
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    error = math.sqrt(float(found.influence @ found.influence))
    assert error == pytest.approx(expected.standard_error, rel=1e-3)


def test_difference_of_single_runs_is_that_of_the_paired_test() -> None:
    compared = compare_variants({"a": [run(1)], "b": [run(2, 1.4)]})
    keys = [f"r{row}" for row in range(2 * NUM_PATIENTS)]
    one, other = (
        RunScores(*scores(seed, strength), keys, CLUSTERS, list("wxyz"))
        for seed, strength in ((1, 1.0), (2, 1.4))
    )
    expected = compare_runs(one, other).macro
    (difference,) = compared.differences
    assert compared.best == "b" and difference.name == "a"
    assert difference.estimate.value == pytest.approx(expected.difference, abs=1e-12)
    assert difference.p_value == pytest.approx(expected.p_value, rel=0.02)
    assert difference.estimate.lower == pytest.approx(expected.lower, abs=2e-4)
    # One patient's hardness is in both: the difference is surer than two intervals suggest.
    apart = math.hypot(*(item.patient_error for item in compared.variants))
    assert difference.estimate.upper - difference.estimate.lower < 2 * 1.96 * apart


def test_spread_of_seeds_widens_intervals_and_lifts_p_values() -> None:
    flat = Macro(0.9, np.zeros(10), 3)
    patients = np.full(10, 0.001)

    def variant(*values: float) -> list[Macro]:
        return [Macro(value, patients, 3) for value in values]

    assert flat.num_labels == 3
    steady = compare_variants({"a": variant(0.900, 0.9001), "b": variant(0.910, 0.9101)})
    shaky = compare_variants({"a": variant(0.890, 0.9101), "b": variant(0.900, 0.9201)})
    assert steady.differences[0].p_value < 0.01 < shaky.differences[0].p_value
    widths = [
        c.variant("a").estimate.upper - c.variant("a").estimate.lower for c in (steady, shaky)
    ]
    assert widths[1] > widths[0]


def test_seed_spread_is_pooled_over_variants_with_its_degrees_of_freedom() -> None:
    assert pooled_spread([[1.0, 3.0], [5.0, 5.0, 5.0], [7.0]]) == (
        pytest.approx(math.sqrt(2 / 3)),
        3,
    )
    assert pooled_spread([[1.0], [2.0]])[1] == 0


def test_false_claims_stay_near_the_level_when_sizes_are_equal() -> None:
    """Equal variants, patients and seeds drawn anew 400 times: the test against one other."""
    rng = np.random.default_rng(3)
    claimed = 0
    for _ in range(400):
        shared = rng.normal(0, 0.004, 40) / math.sqrt(40)
        runs = {
            name: [
                Macro(0.9 + rng.normal(0, 0.003) + float(extra.sum()), shared + extra, 5)
                for _ in range(3)
            ]
            for name, extra in (("a", np.zeros(40)), ("b", np.zeros(40)))
        }
        claimed += compare_variants(runs).differences[0].p_holm < 0.05
    assert 5 <= claimed <= 40  # 5 % of 400, give or take four standard errors


def compared(means: Sequence[float], spread: float, seeds: int = 3) -> Compared:
    """Return variants s1, s2, ... whose seeds lie evenly around their means."""
    offsets = np.linspace(-1, 1, seeds) * spread if seeds > 1 else np.zeros(1)
    influence = np.full(50, 0.003 / math.sqrt(50))
    return compare_variants(
        {
            f"s{number}": [Macro(mean + offset, influence, 5) for offset in offsets]
            for number, mean in enumerate(means, start=1)
        }
    )


def words(found: Compared, **more: object) -> str:
    names = [item.name for item in found.variants]
    return " ".join(conclusion(found, "val", "macro AUROC over 5 labels", ordered=names, **more))  # type: ignore[arg-type]


def test_equal_sizes_are_said_to_show_no_difference() -> None:
    text = words(compared([0.900, 0.901, 0.900, 0.9005], spread=0.003))
    assert "No difference can be claimed" in text
    assert "better" not in text and "no proof that they are equal" in text
    assert "no optimum" in text


def test_clear_difference_is_claimed_and_only_that_one() -> None:
    text = words(compared([0.80, 0.90, 0.9005], spread=0.001))
    assert "s3 is better than s1" in text
    assert "does not differ significantly from s2 (-0.000" in text
    assert "no difference can be claimed" in text
    assert "nothing is said about larger ones" in text


def test_single_seeds_claim_nothing_about_other_seeds() -> None:
    influence = np.array([0.001, -0.001])
    found = compare_variants(
        {"small": [Macro(0.8, influence, 5)], "large": [Macro(0.9, -influence, 5)]}
    )
    text = words(found)
    assert "came out above" in text and "is better" not in text
    assert "trained with one seed" in text and "may be the seed's" in text
    assert "standard deviation" not in text


def test_lone_variant_is_compared_with_nothing() -> None:
    assert "nothing is compared" in words(compared([0.9], spread=0.001))


def test_every_text_says_that_the_best_was_chosen_on_what_it_is_tested_on() -> None:
    for means in ([0.9, 0.9], [0.7, 0.8, 0.9]):
        assert "flatters" in words(compared(means, spread=0.001))


SIZES = np.array([1e5, 3e5, 1e6, 3e6, 1e7])


def test_law_recovers_limit_and_exponent_where_the_data_determine_them() -> None:
    truth = 0.93 - 0.05 * (SIZES / 1e6) ** -0.5
    law = fit_power_law(SIZES, truth, np.eye(5) * 1e-4**2)
    assert law.exponent.value == pytest.approx(0.5, abs=0.03)
    assert law.exponent.lower <= 0.5 <= law.exponent.upper
    assert law.limit.value == pytest.approx(0.93, abs=0.002)
    assert law.limit.lower <= 0.93 <= law.limit.upper and not law.limit.open_above
    np.testing.assert_allclose(law.at(SIZES), truth, atol=3e-4)
    assert not law.is_flat and law.degrees == 2


def test_profile_interval_of_the_limit_covers_it() -> None:
    rng = np.random.default_rng(1)
    truth = 0.93 - 0.05 * (SIZES / 1e6) ** -0.5
    covered = 0
    for _ in range(60):
        law = fit_power_law(SIZES, truth + rng.normal(0, 1e-3, 5), np.eye(5) * 1e-3**2)
        covered += law.limit.lower <= 0.93 <= law.limit.upper
    assert covered >= 50  # 95 % of 60, less four standard errors


def test_error_that_all_sizes_share_does_not_widen_the_exponent() -> None:
    truth = 0.93 - 0.05 * (SIZES / 1e6) ** -0.5
    own, shared = np.eye(5) * 5e-4**2, np.full((5, 5), 5e-3**2)
    alone, together = (fit_power_law(SIZES, truth, c) for c in (own, own + shared))
    width = alone.exponent.upper - alone.exponent.lower
    assert together.exponent.upper - together.exponent.lower < 2.5 * width
    assert together.limit.upper - together.limit.lower > alone.limit.upper - alone.limit.lower


def test_flat_data_foretell_no_gain() -> None:
    law = fit_power_law(SIZES, [0.9, 0.9004, 0.8998, 0.9001, 0.9], np.eye(5) * 1e-3**2)
    assert law.is_flat
    text = words(compared([0.9, 0.9, 0.9], spread=0.002), law=law)
    assert "no gain by size can be claimed" in text and "approaches" not in text


def test_determined_law_is_stated_with_its_intervals_and_no_forecast() -> None:
    truth = 0.93 - 0.05 * (SIZES / 1e6) ** -0.5
    law = fit_power_law(SIZES, truth, np.eye(5) * 1e-4**2)
    text = words(compared([0.8, 0.9], spread=0.001), law=law)
    assert "exponent 0.50" in text and "95 % interval" in text and "no forecast" in text


def test_no_law_from_too_few_sizes_or_seeds() -> None:
    assert why_no_law(4, [3, 3, 3, 3]) is None
    for sizes, seeds in ((3, [3, 3, 3]), (4, [3, 3, 3, 2]), (5, [1] * 5), (0, [])):
        assert "4 sizes with 3 seeds" in (why_no_law(sizes, seeds) or "")


def test_rate_rule_recovers_the_exponent_of_the_optima() -> None:
    def auroc(size: float, rate: float) -> float:
        return 0.9 - 0.01 * math.log(rate / (3e-3 * (size / 1e6) ** -0.2)) ** 2

    points = [
        RatePoint(size, rate, auroc(size, rate))
        for size in (2e5, 1e6, 5e6)
        for rate in (1e-3, 2e-3, 4e-3, 8e-3)
    ]
    rule = fit_rate_rule(points)
    assert rule.exponent == pytest.approx(-0.2, abs=1e-6)
    assert rule.best_rate(1e6) == pytest.approx(3e-3, rel=1e-6)
    assert rule.best_rate(2e5) == pytest.approx(3e-3 * 0.2**-0.2, rel=1e-6)


def test_rate_rule_needs_three_rates_and_two_sizes() -> None:
    points = [RatePoint(1e6, rate, 0.9) for rate in (1e-3, 2e-3, 4e-3)]
    with pytest.raises(UserError, match="two sizes"):
        fit_rate_rule(points)
    with pytest.raises(UserError, match="three rates"):
        fit_rate_rule([RatePoint(size, 1e-3, 0.9) for size in (1e5, 1e6)])

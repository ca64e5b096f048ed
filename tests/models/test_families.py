"""Networks by rule: the number asked for is met, the rule is kept, the named sizes come out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import MODEL_TABLE, Net1D, Net1DConfig, count_parameters, create_model
from ecgfounder_train.models.families import TOLERANCE, parameter_count, resolve_model, solve

RELEASED = MODEL_TABLE["net1d_31m"]


def built_parameters(config: Net1DConfig) -> int:
    with torch.device("meta"):
        return count_parameters(Net1D(config)).total


@pytest.mark.parametrize("name", list(MODEL_TABLE))
def test_counted_parameters_are_those_of_the_built_network(name: str) -> None:
    config = replace(MODEL_TABLE[name], num_leads=1, num_labels=7, kernel_size=5)
    for variant in (config, replace(config, pooling="attention"), MODEL_TABLE[name]):
        assert parameter_count(variant) == built_parameters(variant)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (1.2e6, "net1d_1m"),
        (11.7e6, "net1d_12m"),
        (25.6e6, "net1d_26m"),
        (30_819_014, "net1d_31m"),
        (76.3e6, "net1d_76m"),
        (110e6, "net1d_110m"),
        (0.5e6, "net1d_500k"),
    ],
)
def test_named_sizes_come_out_of_the_width_rule(target: float, name: str) -> None:
    assert solve(target) == MODEL_TABLE[name]


@settings(max_examples=25, deadline=None)
@given(
    target=st.floats(2e6, 2e8),
    family=st.sampled_from(["width", "depth"]),
    group=st.sampled_from([8, 16]),
)
def test_target_is_met_within_half_a_percent_by_multiples_of_the_group(
    target: float, family: str, group: int
) -> None:
    base = replace(RELEASED, group_width=group)
    found = solve(target, family, base)
    assert abs(built_parameters(found) / target - 1) <= TOLERANCE
    assert all(width % group == 0 for width in found.widths)
    assert len(found.widths) == len(base.widths)


@pytest.mark.parametrize("target", [0.8e6, 5e6, 11.7e6, 76.3e6])
def test_regnet_widths_are_quantised_by_one_factor_and_met_within_half_a_percent(
    target: float,
) -> None:
    found = solve(target, "regnet")
    assert abs(built_parameters(found) / target - 1) <= TOLERANCE
    assert sum(found.depths) == sum(RELEASED.depths)
    assert found.stage_strides == RELEASED.stage_strides
    distinct = sorted(set(found.widths))
    # Each width of the quantised line is the one before times w_m, but for the group's rounding
    # and the last resort of moving a stage by a group.
    first = distinct[0]
    assert 2 <= len(distinct) <= len(found.widths)
    for width in distinct[1:]:
        assert 1.8 * first - 32 <= width <= 3.2**6 * first


def test_width_family_keeps_depths_and_proportions() -> None:
    found = solve(60e6)
    assert found.depths == RELEASED.depths
    factors = [new / old for new, old in zip(found.widths, RELEASED.widths, strict=True)]
    assert max(factors) / min(factors) < 1.2


def test_depth_family_changes_widths_only_by_the_remainder() -> None:
    found = solve(76.3e6, "depth")
    assert sum(found.depths) > 2 * sum(RELEASED.depths)
    for new, old in zip(found.widths, RELEASED.widths, strict=True):
        assert abs(new - old) <= 0.1 * old + RELEASED.group_width


def test_everything_but_what_is_scaled_comes_from_the_base() -> None:
    base = replace(MODEL_TABLE["net1d_3m_100hz"], num_leads=1, num_labels=5, head_dropout=0.2)
    found = solve(1e6, base=base)
    kept = {key: getattr(base, key) for key in ("norm", "num_leads", "num_labels", "head_dropout")}
    assert {key: getattr(found, key) for key in kept} == kept
    assert len(found.widths) == 5
    assert solve(parameter_count(base), base=base) == base


def test_resolved_section_builds_the_network_for_these_leads_and_labels() -> None:
    section = {"name": "net1d_family", "target_parameters": 2e6, "norm": "batch"}
    resolved = resolve_model(section, num_leads=1, num_labels=5)
    name = resolved.pop("name")
    model = create_model(name, 1, 5, **resolved)
    assert abs(count_parameters(model).total / 2e6 - 1) <= TOLERANCE
    assert model.config.norm == "batch"
    # A named network is left as it is.
    plain = {"name": "net1d_1m", "norm": "none"}
    assert resolve_model(plain, 12, 150) == plain


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"target_parameters": 1000}, "nearest, widths .* has "),
        ({"target_parameters": 1e30}, "nearest"),
        ({"target_parameters": -1}, "not a number of parameters"),
        ({"target_parameters": "many"}, "not a number of parameters"),
        ({"target_parameters": 2e6, "family": "widht"}, "Did you mean 'width'"),
        ({"target_parameters": 2e6, "base": "net1d_31"}, "Did you mean 'net1d_31m'"),
        ({"target_parameters": 2e6, "widths": [16]}, "model.widths is what"),
        ({"target_parameters": 2e6, "norms": "batch"}, "Did you mean 'norm'"),
    ],
)
def test_target_nothing_reaches_is_refused_with_the_nearest(
    section: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve_model({"name": "net1d_family", **section}, 12, 150)

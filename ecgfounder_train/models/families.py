"""Model families: widths and depths solved for a number of parameters, within half a percent.

Three families grow from a base network, the released one unless another is named:

* ``width``: one factor on all widths, rounded to the group width. The four sizes of the paper's
  ablation (11.7, 25.6, 76.3 and 110 M, configurations unpublished) come out of it.
* ``depth``: one factor on all depths; the remainder, less than a block, is made up by the widths.
* ``regnet``: widths that grow linearly from block to block, quantised to powers of a factor.

Where rounding leaves no network within the tolerance, single stages move by one group, and last the
stem's filters, down to half: the fewest steps away from the plain rule win. Everything counts the
bypassed BatchNorm, as the paper's sizes do.

Sources:
    Radosavovic et al. 2020, *Designing Network Design Spaces*, arXiv 2003.13678, equations 2 to 4.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal, get_args

import numpy as np

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.models.net1d import MODEL_TABLE, Net1DConfig

Family = Literal["width", "depth", "regnet"]
TOLERANCE = 0.005
"""How far a solved network's parameters may be from the target, as a share of it."""

FAMILY_MODEL = "net1d_family"
"""`model.name` of a network that is given by a target instead of by widths."""

_MOST_STEPS = 3  # groups by which stages may leave the plain rule, over all stages
_REGNET_SPREADS = (2.0, 3.0)  # of w_m; RegNet's own search had 1.5 to 3


def parameter_count(config: Net1DConfig) -> int:
    """Return the parameters of a network, without building it; equal to `count_parameters.total`.

    BatchNorm's weights count whether they are used or bypassed.
    """
    kernel = config.kernel_size
    channels = config.base_filters
    total = channels * (config.num_leads * kernel + 1 + 2)
    for width, depth in zip(config.widths, config.depths, strict=True):
        first = 2 * channels + channels * width + width
        later = 2 * width + width * width + width
        rest = 4 * width  # second and third BatchNorm
        rest += width * config.group_width * kernel + width
        rest += width * width + width
        rest += 2 * width * (width // 2) + width // 2 + width
        total += first + (depth - 1) * later + depth * rest
        channels = width
    if config.pooling == "attention":
        total += 2 * channels + channels * (channels // config.group_width)
    return total + channels * config.num_labels + config.num_labels


def solve(target: float, family: str = "width", base: Net1DConfig | None = None) -> Net1DConfig:
    """Return the network of a family with `target` parameters, within `TOLERANCE`.

    Args:
        target: Parameters, with the base's leads and labels.
        family: `width`, `depth` or `regnet`.
        base: What is scaled; None for the released network. Everything but widths, depths, base
            filters and strides is kept.

    Raises:
        UserError: No such family, or none of its networks has so many parameters; the nearest is
            named.
    """
    base = base or MODEL_TABLE["net1d_31m"]
    if family not in get_args(Family):
        hint = did_you_mean(str(family), get_args(Family))
        raise UserError(f"model.family={family!r} is unknown.{hint}")
    if not isinstance(target, int | float) or not 0 < target < math.inf:
        raise UserError(f"model.target_parameters={target!r} is not a number of parameters.")
    if family == "width":
        plain = _width_scaled(base, target)
    elif family == "depth":
        plain = _depth_scaled(base, target)
    else:
        plain = _regnet(base, target)
    found = min(_nearby(plain, target, move_filters=family == "width"), key=lambda item: item[0])[1]
    count = parameter_count(found)
    if abs(count / target - 1) > TOLERANCE:
        raise UserError(
            f"No network of the {family} family has {target:,.0f} parameters within "
            f"{TOLERANCE:.1%}: the nearest, widths {list(found.widths)} and depths "
            f"{list(found.depths)}, has {count:,}. Choose another model.target_parameters, a "
            "smaller model.group_width or another model.base."
        )
    return found


def resolve_model(settings: Mapping[str, Any], num_leads: int, num_labels: int) -> dict[str, Any]:
    """Return a config's `model` section with a target replaced by the network it leads to.

    A section that names a network of the table comes back as it is. What is stored with a run must
    be what this returns: the same target means other widths where the number of labels differs.

    Args:
        settings: `name` and its keys; for `net1d_family` also `target_parameters`, `family` and
            `base`.
        num_leads: Channels of the input.
        num_labels: Outputs.

    Raises:
        UserError: As `solve`; an unknown base; or widths given beside a target.
    """
    settings = dict(settings)
    if settings.get("name") != FAMILY_MODEL:
        return settings
    del settings["name"]
    target, family = settings.pop("target_parameters"), settings.pop("family", "width")
    name = str(settings.pop("base", "net1d_31m"))
    if name not in MODEL_TABLE:
        raise UserError(f"model.base={name!r} is unknown.{did_you_mean(name, MODEL_TABLE)}")
    solved = ("widths", "depths", "base_filters", "stage_strides")
    if given := [key for key in solved if key in settings]:
        raise UserError(
            f"model.{given[0]} is what model={FAMILY_MODEL} solves for; choose a network by name "
            "to set it."
        )
    known = {item.name for item in fields(Net1DConfig)}
    for key in settings:
        if key not in known:
            raise UserError(f"model.{key} is not a setting of a network.{did_you_mean(key, known)}")
    base = replace(
        MODEL_TABLE[name], **{**settings, "num_leads": num_leads, "num_labels": num_labels}
    )
    found = solve(target, str(family), base)
    return {"name": name, **settings} | {
        key: list(getattr(found, key)) if key != "base_filters" else found.base_filters
        for key in solved
    }


def _width_scaled(base: Net1DConfig, target: float) -> Net1DConfig:
    """Return the base with all widths scaled by the smallest factor that meets the target.

    Parameters never fall with the factor, so the first network that is not below the tolerance is
    found by halving; where it is above, the last one below may be nearer.
    """
    least = target * (1 - TOLERANCE)
    low, high = 1e-3, 1.0
    while parameter_count(_scaled(base, high)) < least and high < 1e3:
        low, high = high, 2 * high
    for _ in range(60):
        middle = math.sqrt(low * high)
        if parameter_count(_scaled(base, middle)) < least:
            low = middle
        else:
            high = middle
    below, first = _scaled(base, low), _scaled(base, high)
    if _deviation(first, target) <= TOLERANCE:
        return first
    return min(below, first, key=lambda config: _deviation(config, target))


def _scaled(base: Net1DConfig, factor: float) -> Net1DConfig:
    group = base.group_width
    widths = tuple(max(1, math.floor(factor * w / group + 0.5)) * group for w in base.widths)
    ratio = base.base_filters / base.widths[0]
    filters = min(max(1, round(ratio * widths[0])), widths[0])
    return replace(base, widths=widths, base_filters=filters)


def _depth_scaled(base: Net1DConfig, target: float) -> Net1DConfig:
    """Return the depths whose factor comes nearest, the rest made up by a factor on the widths."""
    vectors = {
        tuple(max(1, round(depth * factor)) for depth in base.depths)
        for factor in np.geomspace(0.1, 32, 400)
    }
    by_count = sorted(
        (replace(base, depths=depths) for depths in vectors), key=lambda c: _deviation(c, target)
    )
    best, least = by_count[0], math.inf
    # Among the nearest few the one that needs the smallest change of width, and reaches the target.
    for config in by_count[:4]:
        fitted = _width_scaled(config, target)
        moved = abs(math.log(sum(fitted.widths) / sum(config.widths)))
        if _reachable(fitted, target) and moved < least:
            best, least = fitted, moved
    return best if least < math.inf else _width_scaled(best, target)


def _regnet(base: Net1DConfig, target: float) -> Net1DConfig:
    """Return the quantised-linear network nearest to the target.

    Block j of d has the linear width u_j = w_0 + w_a j; log(u_j / w_0) / log(w_m) is rounded to the
    whole number s_j, and the block is w_0 w_m^s_j wide, rounded to the group width. The released
    network is quantised by w_m = 2.5 from w_0 = 64. Runs of equal width are stages; the longest are
    halved until there are as many strides as in the base, as the released network has two stages
    of each width. A search over w_0, w_a and w_m takes what reaches the target with w_m nearest to
    2.5 and w_0 : w_a nearest to the base's.
    """
    num_blocks = sum(base.depths)
    position = np.arange(num_blocks)
    blocks = np.repeat(base.widths, base.depths)
    slope = max(float(blocks[-1] - blocks[0]) / max(num_blocks - 1, 1), 1e-9)
    scale = math.sqrt(target / parameter_count(base))
    best: tuple[float, Net1DConfig] | None = None
    nearest: tuple[float, Net1DConfig] | None = None
    starts = sorted({max(1, round(base.widths[0] * scale * f / base.group_width)) for f in
                     np.geomspace(0.4, 2.5, 24)})  # fmt: skip
    for start, spread, steepness in itertools.product(
        starts, np.linspace(*_REGNET_SPREADS, 41), np.geomspace(0.4, 2.5, 60)
    ):
        first = start * base.group_width
        rise = slope * scale * steepness
        powers = np.round(np.log1p(rise * position / first) / math.log(spread))
        groups = np.maximum(np.round(first * spread**powers / base.group_width), 1).astype(int)
        config = _staged(base, (groups * base.group_width).tolist())
        if config is None:
            continue
        deviation = _deviation(config, target)
        odd = math.log(spread / 2.5) ** 2 + math.log(rise * base.widths[0] / slope / first) ** 2
        if nearest is None or deviation < nearest[0]:
            nearest = deviation, config
        if deviation <= TOLERANCE and (best is None or odd < best[0]):
            best = odd, config
    chosen = best or nearest
    if chosen is None:
        raise UserError(
            f"The regnet family has no network of {target:,.0f} parameters with the base's "
            f"{len(base.widths)} strides. Choose another model.target_parameters or family."
        )
    return chosen[1]


def _staged(base: Net1DConfig, blocks: Sequence[int]) -> Net1DConfig | None:
    """Return the network of these block widths with the base's number of stages, if it has one."""
    runs = [(width, len(list(group))) for width, group in itertools.groupby(blocks)]
    while len(runs) < len(base.widths):
        longest = max(range(len(runs)), key=lambda index: (runs[index][1], index))
        width, depth = runs[longest]
        if depth < 2:
            return None
        runs[longest : longest + 1] = [(width, depth // 2), (width, depth - depth // 2)]
    if len(runs) != len(base.widths):
        return None
    widths, depths = zip(*runs, strict=True)
    ratio = base.base_filters / base.widths[0]
    return replace(
        base, widths=widths, depths=depths, base_filters=max(1, round(ratio * widths[0]))
    )


def _nearby(
    plain: Net1DConfig, target: float, move_filters: bool
) -> Iterator[tuple[tuple[bool, int, float], Net1DConfig]]:
    """Yield networks with their rank: within tolerance first, then fewest steps, then nearest."""
    yield _rank(plain, target, 0), plain
    if _deviation(plain, target) <= TOLERANCE:
        return
    stages = len(plain.widths)
    for steps in itertools.product((-1, 0, 1), repeat=stages):
        moved = sum(map(abs, steps))
        if not 0 < moved <= _MOST_STEPS:
            continue
        widths = tuple(
            width + step * plain.group_width
            for width, step in zip(plain.widths, steps, strict=True)
        )
        if widths[0] < plain.group_width or any(a > b for a, b in itertools.pairwise(widths)):
            continue
        filters = min(plain.base_filters, widths[0])
        if plain.base_filters == plain.widths[0]:
            filters = widths[0]
        config = replace(plain, widths=widths, base_filters=filters)
        yield _rank(config, target, moved), config
        if move_filters and _deviation(config, target) > TOLERANCE:
            yield from _other_filters(config, target, moved)
    yield from _other_filters(plain, target, 0)


def _other_filters(
    config: Net1DConfig, target: float, moved: int
) -> Iterator[tuple[tuple[bool, int, float], Net1DConfig]]:
    """Yield the network with the one number of stem filters that meets the target best."""
    each = config.num_leads * config.kernel_size + 5 + config.widths[0]
    lacking = (target - parameter_count(config)) / each
    # Not below half: a stem narrower than the leads it mixes would be another network's weakness.
    filters = max(config.base_filters + round(lacking), -(-config.base_filters // 2))
    filters = min(filters, config.widths[0])
    if filters != config.base_filters:
        changed = replace(config, base_filters=filters)
        # A changed stem counts as one step more than any change of stages needs.
        yield _rank(changed, target, moved + _MOST_STEPS), changed


def _reachable(config: Net1DConfig, target: float) -> bool:
    return min(_nearby(config, target, move_filters=True), key=lambda item: item[0])[0][0] is False


def _rank(config: Net1DConfig, target: float, steps: int) -> tuple[bool, int, float]:
    deviation = _deviation(config, target)
    return deviation > TOLERANCE, steps if deviation <= TOLERANCE else 0, deviation


def _deviation(config: Net1DConfig, target: float) -> float:
    return abs(parameter_count(config) / target - 1)

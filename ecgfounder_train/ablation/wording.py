"""The paragraph of a report: what may be said, and no more."""

from collections.abc import Sequence

from ecgfounder_train.ablation.scaling import Interval, PowerLaw
from ecgfounder_train.ablation.statistics import Compared, Difference, Estimate

ALPHA = 0.05
_MOST_LISTED = 4


def conclusion(
    compared: Compared,
    split: str,
    headline: str,
    law: PowerLaw | None = None,
    no_law: str | None = None,
    ordered: Sequence[str] | None = None,
) -> list[str]:
    """Return the sentences that the comparison allows.

    Args:
        compared: Estimates and tests.
        split: Part of the data they are of.
        headline: What the numbers are, such as "macro AUROC over 5 labels".
        law: A fitted power law.
        no_law: Why there is none, where sizes were compared.
        ordered: Names of the variants by size, where they have one.
    """
    best = compared.variant(compared.best)
    sentences = [
        f"The highest {headline} on the {split} part is {_estimate(best.estimate)}, of {best.name}."
    ]
    if not compared.differences:
        return [*sentences, "Nothing else is finished, so nothing is compared."]
    worse = [item for item in compared.differences if item.p_holm < ALPHA]
    equal = [item for item in compared.differences if not item.p_holm < ALPHA]
    if not worse:
        widest = max(equal, key=lambda item: -item.estimate.lower)
        sentences.append(
            f"No difference can be claimed: none of the other {len(equal)} differs "
            "significantly from it "
            f"(smallest p after Holm's correction "
            f"{min(item.p_holm for item in equal):.2g}). That is no proof that they are equal: "
            f"{widest.name} may lie up to {max(-widest.estimate.lower, 0.0):.3f} below the best."
        )
    else:
        verb = "is better than" if compared.with_seeds else "came out above"
        sentences.append(f"{best.name} {verb} {_differences(worse)}.")
        if equal:
            sentences.append(
                f"It does not differ significantly from {_differences(equal)}: "
                "no difference can be claimed."
            )
    sentences.append(_about_the_edge(compared, ordered, [item.name for item in equal]))
    if compared.with_seeds:
        sentences.append(
            f"Intervals and tests hold for other patients and other seeds; the seed alone moves a "
            f"run by a standard deviation of {compared.seed_error:.4f} "
            f"({compared.degrees} degrees of freedom)."
        )
    else:
        sentences.append(
            "Each was trained with one seed: the intervals hold for other patients, not for "
            "another seed, so even a difference named here may be the seed's."
        )
    sentences.append(
        "The best was chosen on the very records it is tested on, which flatters it: confirm the "
        "choice on data that played no part in it."
    )
    if law is not None:
        sentences.append(_about_the_law(law))
    elif no_law:
        sentences.append(no_law)
    return [sentence for sentence in sentences if sentence]


def _about_the_edge(compared: Compared, ordered: Sequence[str] | None, equal: Sequence[str]) -> str:
    """Return what the range of sizes leaves open, or nothing where the order has no meaning."""
    if not ordered or len(ordered) < 3:
        return ""
    place = ordered.index(compared.best)
    larger = ordered[place + 1 :]
    if not larger:
        return "The best is the largest that was tried, so nothing is said about larger ones."
    if all(name in equal for name in larger):
        return (
            "That the best is not the largest proves no optimum: none larger is worse for certain."
        )
    return ""


def _about_the_law(law: PowerLaw) -> str:
    if law.is_flat:
        return (
            "A saturating power law fits no better than a constant: its exponent does not differ "
            "significantly from 0, so no gain by size can be claimed or extrapolated."
        )
    text = (
        f"A saturating power law has the exponent {_interval(law.exponent, '.2f')} and approaches "
        f"{_interval(law.limit, '.3f')}"
    )
    if law.limit.open_above:
        text += "; where it ends is not determined by these sizes"
    if law.misfit > 6.63 * max(law.degrees, 1):
        text += "; the law fits badly, so neither is to be relied on"
    return text + ". It describes the sizes tried and is no forecast beyond them."


def _interval(interval: Interval, spec: str) -> str:
    low = "not bounded below" if interval.open_below else format(interval.lower, spec)
    high = "not bounded above" if interval.open_above else format(interval.upper, spec)
    return f"{interval.value:{spec}} (95 % interval {low} to {high})"


def _estimate(estimate: Estimate) -> str:
    if estimate.lower != estimate.lower:
        return f"{estimate.value:.3f} (no interval: too few patients)"
    return f"{estimate.value:.3f} (95 % interval {estimate.lower:.3f} to {estimate.upper:.3f})"


def _differences(items: Sequence[Difference]) -> str:
    """Return the differences in words, the smallest first; of many only the first few."""
    near = sorted(items, key=lambda item: abs(item.estimate.value))
    shown = [_difference(item) for item in near[:_MOST_LISTED]]
    if len(near) > _MOST_LISTED:
        shown.append(f"{len(near) - _MOST_LISTED} others further away (see the tests)")
    return _listed(shown)


def _difference(item: Difference) -> str:
    found = item.estimate
    return (
        f"{item.name} ({found.value:+.3f}, {found.lower:+.3f} to {found.upper:+.3f}, p = "
        f"{item.p_holm:.2g} after Holm's correction)"
    )


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"

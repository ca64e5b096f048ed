"""A saturating power law through the sizes: what is left to gain, and how fast it is gained.

1 - AUROC = floor + scale * (size / middle) ** -exponent. Fitted by generalised least squares: the
patients are the same for all sizes, so their errors are correlated; the fit uses their covariance.
Intervals are profile likelihoods: for each value of a parameter the others are refitted, and the
value belongs to the interval while twice the log-likelihood is within 3.84 of the best. Where the
data do not bound a parameter its interval ends at the bound of the search, and says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Float = NDArray[np.float64]
MIN_SIZES, MIN_SEEDS = 4, 3
"""From how many sizes and seeds a law of three parameters is fitted at all."""

CHI_SQUARED_95 = 3.841
_EXPONENTS = np.concatenate([[0.0], np.geomspace(0.01, 5.0, 100)])


@dataclass(frozen=True)
class Interval:
    """A parameter with its profile-likelihood interval; a side the data leave open is open."""

    value: float
    lower: float
    upper: float
    open_below: bool = False
    open_above: bool = False


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law.

    Attributes:
        limit: Macro AUROC that ever larger sizes approach.
        exponent: How fast; 0 is not at all.
        middle: The size in which `scale` is expressed.
        misfit: Chi squared of the fit, with `degrees` degrees of freedom.
    """

    limit: Interval
    exponent: Interval
    scale: float
    middle: float
    misfit: float
    degrees: int

    def at(self, sizes: Float) -> Float:
        """Return the law's AUROC at these sizes."""
        powers: Float = (sizes / self.middle) ** -self.exponent.value
        return self.limit.value - self.scale * powers

    @property
    def is_flat(self) -> bool:
        """Whether the data are as well explained by no dependence on the size."""
        return self.exponent.open_below or self.exponent.lower <= 0


def why_no_law(num_sizes: int, num_seeds: Sequence[int]) -> str | None:
    """Return why no law is fitted, None where there is enough to fit one."""
    if num_sizes >= MIN_SIZES and min(num_seeds, default=0) >= MIN_SEEDS:
        return None
    return (
        f"A power law is fitted from {MIN_SIZES} sizes with {MIN_SEEDS} seeds each on; here are "
        f"{num_sizes} sizes with {min(num_seeds, default=0)} or more."
    )


def fit_power_law(sizes: Sequence[float], aurocs: Sequence[float], covariance: Float) -> PowerLaw:
    """Return the law through mean AUROCs with this covariance.

    Args:
        sizes: Parameters, FLOPs or training samples.
        aurocs: Mean over the seeds at each size.
        covariance: Of the means; patients and seeds together.

    Shape:
        covariance: (number of sizes, number of sizes).
    """
    data = _Whitened.of(np.asarray(sizes, np.float64), 1 - np.asarray(aurocs), covariance)
    misfits, floors, scales = data.fits(_EXPONENTS)
    fine = _around(_EXPONENTS, int(misfits.argmin()))
    misfits, floors, scales = data.fits(fine)
    best = int(misfits.argmin())
    least = float(misfits[best])
    exponent = _profile_interval(
        lambda value: float(data.fits(np.array([value]))[0][0]),
        float(fine[best]),
        least,
        _EXPONENTS,
    )
    floor = float(floors[best])
    # A floor above every deficit leaves nothing that a power could describe.
    grid = np.linspace(0.0, max(float((1 - np.asarray(aurocs)).max()), 1e-9), 60)
    found = _profile_interval(data.misfit_of_floor, floor, least, grid)
    limit = Interval(
        1 - found.value, 1 - found.upper, 1 - found.lower, found.open_above, found.open_below
    )
    return PowerLaw(limit, exponent, float(scales[best]), data.middle, least, len(data.x) - 3)


@dataclass(frozen=True)
class _Whitened:
    """Data with the inverse root of their covariance: residuals are independent, of length one."""

    x: Float
    deficit: Float
    root: Float
    middle: float

    @classmethod
    def of(cls, sizes: Float, deficit: Float, covariance: Float) -> "_Whitened":
        middle = float(np.exp(np.log(sizes).mean()))
        values, vectors = np.linalg.eigh(covariance)
        root = vectors / np.sqrt(np.maximum(values, values.max() * 1e-12)) @ vectors.T
        return cls(sizes / middle, deficit, root, middle)

    def fits(self, exponents: Float) -> tuple[Float, Float, Float]:
        """Return chi squared, floor and scale of the best fit for each exponent.

        Floor and scale are not negative: where the free fit wants one to be, it is zero.
        """
        powers = self.root @ self.x[:, None] ** -exponents[None, :]  # (n, E)
        ones = (self.root @ np.ones_like(self.x))[:, None]
        rest = (self.root @ self.deficit)[:, None]
        a, b, c = (ones**2).sum(), (ones * powers).sum(0), (powers**2).sum(0)
        d, e = (ones * rest).sum(), (powers * rest).sum(0)
        determinant = a * c - b**2
        with np.errstate(divide="ignore", invalid="ignore"):
            floor, scale = (d * c - e * b) / determinant, (a * e - b * d) / determinant
        flat = ~(scale > 0) | ~(determinant > 1e-12 * a * c)
        floor, scale = np.where(flat, d / a, floor), np.where(flat, 0.0, scale)
        low = floor < 0
        floor, scale = np.where(low, 0.0, floor), np.where(low, np.maximum(e / c, 0), scale)
        misfit = ((rest - ones * floor - powers * scale) ** 2).sum(0)
        return misfit, floor, scale

    def misfit_of_floor(self, floor: float) -> float:
        """Return the least chi squared for a given floor."""
        rest = (self.root @ (self.deficit - floor))[:, None]

        def misfits(exponents: Float) -> Float:
            powers = self.root @ self.x[:, None] ** -exponents[None, :]
            scale = np.maximum((powers * rest).sum(0) / (powers**2).sum(0), 0)
            found: Float = ((rest - powers * scale) ** 2).sum(0)
            return found

        coarse = misfits(_EXPONENTS)
        return float(misfits(_around(_EXPONENTS, int(coarse.argmin()))).min())


def _around(grid: Float, place: int) -> Float:
    """Return a finer grid between the neighbours of a place."""
    low, high = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
    return np.linspace(low, high, 101)


def _profile_interval(
    profile: Callable[[float], float], best: float, least: float, grid: Float
) -> Interval:
    """Return where a profile crosses the limit on either side, or that it does not."""
    limit = least + CHI_SQUARED_95

    def end(outwards: Float) -> tuple[float, bool]:
        inside = best
        for value in outwards.tolist():
            if profile(value) > limit:
                crossing = brentq(lambda at: profile(at) - limit, inside, value, xtol=1e-7)
                return float(crossing), False
            inside = value
        return inside, True

    lower, open_below = end(grid[grid < best][::-1])
    upper, open_above = end(grid[grid > best])
    return Interval(best, lower, upper, open_below, open_above)

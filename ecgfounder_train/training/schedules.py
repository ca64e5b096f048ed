"""Learning rate as a pure function of the samples seen and the validations so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.settings import parse_settings


@dataclass(frozen=True)
class Progress:
    """How far a run is, in samples.

    Attributes:
        scores: What each validation so far brought, higher is better, oldest first.
    """

    samples_seen: int
    total_samples: int
    samples_per_epoch: int
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine down to `final_factor` (Loshchilov and Hutter 2017)."""

    warmup_share: float = 0.05
    final_factor: float = 0.01

    def __post_init__(self) -> None:
        _share("schedule.warmup_share", self.warmup_share)
        _share("schedule.final_factor", self.final_factor)

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        done = progress.samples_seen / progress.total_samples
        if done < self.warmup_share:
            # Half a percent of the rate at the very first step: a step of zero would be wasted.
            return max(done / self.warmup_share, 0.005)
        rest = min((done - self.warmup_share) / (1 - self.warmup_share), 1.0)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * rest)) / 2


@dataclass(frozen=True)
class Step:
    """Divide the rate by `divisor` every `every_epochs` (ECGFounder, reported: 10 every 5)."""

    every_epochs: float = 5.0
    divisor: float = 10.0

    def __post_init__(self) -> None:
        if self.every_epochs <= 0 or self.divisor <= 0:
            raise UserError("schedule.every_epochs and schedule.divisor must be above 0.")

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        epochs = progress.samples_seen / progress.samples_per_epoch
        return float(self.divisor ** -math.floor(epochs / self.every_epochs))


@dataclass(frozen=True)
class OneCycle:
    """Cosine up from rate/start_divisor, cosine down to rate/start_divisor/final_divisor.

    Source: Smith and Topin 2018, arXiv 1708.07120; shape and defaults of torch's OneCycleLR.
    """

    warmup_share: float = 0.3
    start_divisor: float = 25.0
    final_divisor: float = 10000.0

    def __post_init__(self) -> None:
        _share("schedule.warmup_share", self.warmup_share)
        if self.start_divisor <= 0 or self.final_divisor <= 0:
            raise UserError("schedule.start_divisor and schedule.final_divisor must be above 0.")

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        done = min(progress.samples_seen / progress.total_samples, 1.0)
        low = 1 / self.start_divisor
        if done < self.warmup_share:
            return _cosine_between(low, 1.0, done / self.warmup_share)
        end = low / self.final_divisor
        return _cosine_between(1.0, end, (done - self.warmup_share) / (1 - self.warmup_share))


@dataclass(frozen=True)
class Plateau:
    """Divide the rate by `divisor` when more than `patience` validations brought nothing better.

    The schedule of the released checkpoint's optimizer state and of the official fine-tuning
    scripts; torch's ReduceLROnPlateau with an absolute threshold, as a function of all scores.
    What is watched is `checkpoint.monitor`.

    Args:
        patience: Validations without a better score that are still borne.
        divisor: The rate is divided by this.
        threshold: How much better a score must be to count.
        final_factor: The factor never falls below this.
    """

    patience: int = 10
    divisor: float = 10.0
    threshold: float = 1e-4
    final_factor: float = 1e-3

    def __post_init__(self) -> None:
        if self.patience < 0 or self.divisor <= 1 or self.threshold < 0:
            raise UserError(
                "schedule.patience and schedule.threshold must not be negative, schedule.divisor "
                "must be above 1."
            )
        _share("schedule.final_factor", self.final_factor)

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        factor, best, borne = 1.0, -math.inf, 0
        for score in progress.scores:
            if score > best + self.threshold:
                best, borne = score, 0
            else:  # also an undefined score
                borne += 1
            if borne > self.patience:
                factor, borne = factor / self.divisor, 0
        return max(factor, self.final_factor)


@dataclass(frozen=True)
class Constant:
    """The base learning rate throughout."""

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        return 1.0


Schedule = Cosine | Step | OneCycle | Plateau | Constant
SCHEDULES: dict[str, type[Schedule]] = {
    "cosine": Cosine,
    "step": Step,
    "one_cycle": OneCycle,
    "plateau": Plateau,
    "constant": Constant,
}


def create_schedule(config: Mapping[str, Any]) -> Schedule:
    """Return the schedule of a config's `schedule` section (`name` and its parameters)."""
    settings = dict(config)
    name = str(settings.pop("name", ""))
    if name not in SCHEDULES:
        raise UserError(f"schedule.name={name!r} is unknown." + did_you_mean(name, SCHEDULES))
    return parse_settings(SCHEDULES[name], settings, "schedule")


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _share(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{key}={value} is not a share between 0 and 1.")

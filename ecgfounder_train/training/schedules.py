"""Learning rate as a pure function of the samples seen and the validations so far."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ecgfounder_train.core.config import Section, parse_settings, setting
from ecgfounder_train.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Progress:
    """How far a run is, in samples.

    Attributes:
        scores: What each validation so far brought, higher is better, oldest first.
        rate_factor: What a plateau schedule had reached before the first of them.
    """

    samples_seen: int
    total_samples: int
    samples_per_epoch: int
    scores: tuple[float, ...] = ()
    rate_factor: float = 1.0


@dataclass(frozen=True)
class Cosine(Section, name="schedule"):
    """Linear warm-up, then half a cosine down to `final_factor` (Loshchilov and Hutter 2017)."""

    warmup_share: float = setting(0.05, "share of the budget", at_least=0, below=1)
    final_factor: float = setting(0.01, "factor on optimizer.lr at the end", at_least=0, below=1)

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        done = progress.samples_seen / progress.total_samples
        if done < self.warmup_share:
            # Half a percent of the rate at the very first step: a step of zero would be wasted.
            return max(done / self.warmup_share, 0.005)
        rest = min((done - self.warmup_share) / (1 - self.warmup_share), 1.0)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * rest)) / 2


@dataclass(frozen=True)
class Step(Section, name="schedule"):
    """Divide the rate by `divisor` every `every_epochs` (ECGFounder, reported: 10 every 5)."""

    every_epochs: float = setting(5.0, "passes over the training split", above=0)
    divisor: float = setting(10.0, "the rate is divided by this each time", above=0)

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        epochs = progress.samples_seen / progress.samples_per_epoch
        return float(self.divisor ** -math.floor(epochs / self.every_epochs))


@dataclass(frozen=True)
class OneCycle(Section, name="schedule"):
    """Cosine up from rate/start_divisor, cosine down to rate/start_divisor/final_divisor.

    Source: Smith and Topin 2018, arXiv 1708.07120; shape and defaults of torch's OneCycleLR.
    """

    warmup_share: float = setting(0.3, "share of the budget until the peak", at_least=0, below=1)
    start_divisor: float = setting(25.0, "the rate starts at optimizer.lr / this", above=0)
    final_divisor: float = setting(10000.0, "and ends at the start / this", above=0)

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        done = min(progress.samples_seen / progress.total_samples, 1.0)
        low = 1 / self.start_divisor
        if done < self.warmup_share:
            return _cosine_between(low, 1.0, done / self.warmup_share)
        end = low / self.final_divisor
        return _cosine_between(1.0, end, (done - self.warmup_share) / (1 - self.warmup_share))


@dataclass(frozen=True)
class Plateau(Section, name="schedule"):
    """Divide the rate by `divisor` after more than `patience` validations without improvement.

    The schedule of the released checkpoint's optimizer state and of the official fine-tuning
    scripts; torch's ReduceLROnPlateau with an absolute threshold, as a function of all scores.
    What is watched is `checkpoint.monitor`.
    """

    patience: int = setting(10, "validations without improvement to tolerate", at_least=0)
    divisor: float = setting(10.0, "the rate is divided by this", above=1)
    threshold: float = setting(1e-4, "smallest difference that is an improvement", at_least=0)
    final_factor: float = setting(1e-3, "smallest factor on optimizer.lr", at_least=0, below=1)

    def factor(self, progress: Progress) -> float:
        """Return the factor on the base learning rate."""
        factor, best, num_bad = progress.rate_factor, -math.inf, 0
        for score in progress.scores:
            if score > best + self.threshold:
                best, num_bad = score, 0
            else:  # also an undefined score
                num_bad += 1
            if num_bad > self.patience:
                factor, num_bad = factor / self.divisor, 0
        return max(factor, self.final_factor)


@dataclass(frozen=True)
class Constant(Section, name="schedule"):
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

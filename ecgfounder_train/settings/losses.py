"""The loss group: parameters of each loss of `losses.multilabel`."""

from collections.abc import Sequence
from dataclasses import dataclass

from ecgfounder_train.core.config import Section, setting
from ecgfounder_train.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LossSettings(Section, name="loss"):
    """What all losses have in common."""

    name: str = setting(comment="name of the loss")
    label_smoothing: float = setting(
        0.0, "targets move by half of this towards 0.5", at_least=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class BceSettings(LossSettings, name="loss"):
    """Masked binary cross-entropy."""

    pos_weight: float | str | Sequence[float] | None = setting(
        None,
        "factor on the positive term: a number, one per label, or split (negatives per positive of "
        "the training split, at most 100); null: 1",
        above=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.pos_weight, str) and self.pos_weight != "split":
            raise UserError(
                f"loss.pos_weight={self.pos_weight!r} is none of: a number, a list of numbers, "
                "split, null."
            )


@dataclass(frozen=True, kw_only=True)
class HillSettings(LossSettings, name="loss"):
    """Positive-unlabelled Hill loss of ECGFounder."""

    margin: float = setting(
        1.5, "lambda of the Hill loss", at_least=1.5, source="arXiv 2112.07368; ECGFounder paper"
    )
    positive: str = setting(
        "log",
        "positive term, not stated in the paper",
        choices={"log": "-log p", "focal_margin": "the Hill loss's own"},
    )
    positive_margin: float = setting(
        1.0, "focal_margin only: subtracted from the logit of a positive"
    )
    gamma: float = setting(2.0, "focal_margin only: focusing of positives", at_least=0)


@dataclass(frozen=True, kw_only=True)
class FocalSettings(LossSettings, name="loss"):
    """Focal loss."""

    gamma: float = setting(2.0, "focusing; 0 is plain cross-entropy", at_least=0)
    alpha: float | None = setting(
        None,
        "weight of positives, 1 - alpha of negatives; null: both count 1",
        above=0,
        below=1,
    )


@dataclass(frozen=True, kw_only=True)
class AsymmetricSettings(LossSettings, name="loss"):
    """Asymmetric loss."""

    gamma_positive: float = setting(0.0, "focusing of positives", at_least=0)
    gamma_negative: float = setting(4.0, "focusing of negatives", at_least=0)
    margin: float = setting(
        0.05, "probability below which a negative costs nothing", at_least=0, below=1
    )


LOSS_SETTINGS: dict[str, type[LossSettings]] = {
    "bce": BceSettings,
    "pu_hill": HillSettings,
    "focal": FocalSettings,
    "asymmetric": AsymmetricSettings,
}

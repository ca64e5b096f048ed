"""The load half of a signal profile: microvolts to what the network sees (numpy reference)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORMALISATION_KINDS = ("joint", "per_lead", "fixed", "none")


@dataclass(frozen=True)
class LoadNormalisation:
    """How a window is scaled at load.

    `joint` divides all leads by one standard deviation, which keeps the ratios between leads;
    `per_lead` gives each lead its own; `fixed` divides every record by `scale_mv`, which keeps
    absolute amplitude (voltage criteria); `none` leaves mV. `centre` says whether the mean is
    subtracted: not where the profile takes its statistics *before* a high-pass filter (`author`),
    which has already removed that mean. `clip` bounds the result to plus or minus so many.
    """

    kind: str = "joint"
    eps: float = 1e-8
    clip: float | None = None
    centre: bool = True
    scale_mv: float = 1.0

    @property
    def uses_statistics(self) -> bool:
        """Whether a record's own moments are needed."""
        return self.kind in ("joint", "per_lead")

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping of a config's `normalisation` section."""
        return asdict(self)


def normalise(
    ecg: NDArray[np.int16],
    stats: NDArray[np.float32],
    valid_start: ArrayLike,
    valid_num_samples: ArrayLike,
    normalisation: LoadNormalisation,
) -> NDArray[np.float32]:
    """Return (mV - mean) / (standard deviation + eps), 0 outside the valid part.

    The joint moments are pooled from the per-lead ones (all leads have the same number of
    samples), so leads may be chosen before: pass the chosen rows of `ecg` and `stats`.

    Shape:
        ecg: int16 (L, T) or (B, L, T) in microvolts; stats: (L, 2) or (B, L, 2) in mV;
        valid_start, valid_num_samples: numbers or (B,). Returns float32 of the shape of `ecg`.
    """
    millivolts = ecg.astype(np.float64) / 1000.0
    moments = stats.astype(np.float64)
    mean, std = moments[..., 0:1], moments[..., 1:2]
    if normalisation.kind == "joint":
        joint_mean = mean.mean(axis=-2, keepdims=True)
        # Law of total variance: mean of the variances + variance of the means.
        variance = (std**2 + (mean - joint_mean) ** 2).mean(axis=-2, keepdims=True)
        mean, std = joint_mean, np.sqrt(variance)
    if normalisation.kind == "fixed":
        millivolts = millivolts / normalisation.scale_mv
    if normalisation.uses_statistics:
        centred = millivolts - mean if normalisation.centre else millivolts
        millivolts = centred / (std + normalisation.eps)
    if normalisation.clip is not None:
        millivolts = np.clip(millivolts, -normalisation.clip, normalisation.clip)
    start = np.asarray(valid_start)[..., None, None]
    stop = start + np.asarray(valid_num_samples)[..., None, None]
    time = np.arange(ecg.shape[-1])
    valid = (time >= start) & (time < stop)
    return np.where(valid, millivolts, 0.0).astype(np.float32)

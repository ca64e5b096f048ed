"""Recording noise in mV: white, baseline wander, mains hum, muscle; made on the device.

A sample's noise depends on (seed, epoch, slot) alone. The few numbers that shape it are drawn on
the CPU; the many of white noise come from a hash of (the slot's key, place in the signal), which
any device computes alike.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from ecgfounder_train.settings.training import Augmentation

Uniforms = Callable[[str, int], npt.NDArray[np.float32]]
"""(stream, count) -> numbers in [0, 1), (B, count)."""
Keys = Callable[[str], npt.NDArray[np.int32]]
"""Stream -> 32 bits per sample, (B,)."""

_WANDER_HZ = (0.05, 0.5)
_WANDER_WAVES = 3
_BURST_S = (0.2, 1.5)


def noise_mv(
    like: torch.Tensor, strengths: Augmentation, fs: float, uniforms: Uniforms, keys: Keys
) -> torch.Tensor:
    """Return the sum of the noises that are on.

    Waves of baseline wander have one set of frequencies per recording, and mains interference one
    frequency; phases and sizes differ between leads. Otherwise leads are independent, and the limb
    leads' sums (III = II - I) do not hold for the noise. Muscle noise is one burst per recording.

    Shape:
        like: (B, L, T), whose shape and device the result has; T at `fs` Hz.
    """
    num_leads, length = like.shape[1:]
    total = torch.zeros_like(like)

    def drawn(stream: str, *shape: int) -> torch.Tensor:
        values = uniforms(f"noise:{stream}", math.prod(shape)).reshape(-1, *shape)
        return torch.as_tensor(values, dtype=like.dtype, device=like.device)

    def level(stream: str, largest: float) -> torch.Tensor:
        return largest * drawn(f"{stream}:level", 1, 1)

    time = torch.arange(length, device=like.device, dtype=like.dtype) / fs
    if strengths.baseline_wander:
        low, high = _WANDER_HZ
        sizes = _normal(drawn("wander:sizes", num_leads, _WANDER_WAVES))
        # Normal sizes: a sine's mean square is half its squared size.
        sizes = sizes * level("wander", strengths.baseline_wander) * math.sqrt(2 / _WANDER_WAVES)
        phases = 2 * math.pi * drawn("wander:phases", num_leads, _WANDER_WAVES)
        frequencies = low + (high - low) * drawn("wander:frequencies", 1, _WANDER_WAVES)
        for wave in range(_WANDER_WAVES):
            angle = 2 * math.pi * frequencies[..., wave, None] * time + phases[..., wave, None]
            total += sizes[..., wave, None] * angle.sin()
    if strengths.mains_noise:
        sizes = (
            _normal(drawn("mains:sizes", num_leads)) * level("mains", strengths.mains_noise)[..., 0]
        )
        phases = 2 * math.pi * drawn("mains:phases", num_leads)
        angle = 2 * math.pi * strengths.mains_hz * time + phases[..., None]
        total += math.sqrt(2) * sizes[..., None] * angle.sin()
    if strengths.white_noise:
        total += level("white", strengths.white_noise) * hashed_normal(keys("noise:white"), like)
    if strengths.muscle_noise:
        # Differences of white noise: next to nothing below a few Hz, most at half the rate.
        white = hashed_normal(keys("noise:muscle"), like)
        fast = (white - white.roll(1, -1)) / math.sqrt(2)
        short, long = _BURST_S
        middle = length / fs * drawn("muscle:middle", 1, 1)
        width = short + (long - short) * drawn("muscle:width", 1, 1)
        burst = torch.exp(-0.5 * ((time - middle) / width).square())
        total += level("muscle", strengths.muscle_noise) * burst * fast
    return total


def hashed_normal(keys: npt.NDArray[np.int32], like: torch.Tensor) -> torch.Tensor:
    """Return standard normal numbers, a function of the sample's key and the place alone.

    Shape:
        keys: (B,); like: (B, ...), whose shape and device the result has.
    """
    places = torch.arange(like[0].numel(), device=like.device, dtype=torch.int32)
    mixed = _mix32(places)[None] ^ torch.as_tensor(keys, device=like.device)[:, None]
    uniform = _mix32(mixed).bitwise_right_shift_(8).bitwise_and_(0xFFFFFF).to(like.dtype)
    return _normal(uniform.mul_(2.0**-24)).reshape(like.shape)


def _normal(uniform: torch.Tensor) -> torch.Tensor:
    """Return standard normal numbers in the place of 24-bit uniform ones."""
    # From the middle of each number's interval: never infinite, at most 5.4 in size.
    return uniform.mul_(2).sub_(1 - 2.0**-24).erfinv_().mul_(math.sqrt(2))


def _mix32(value: torch.Tensor) -> torch.Tensor:
    """Return a bijective scramble of 32-bit integers in their place; products wrap around.

    Source: the constants that a search for low bias found (C. Wellons, *Prospecting for hash
        functions*, 2018).
    """
    value ^= (value >> 16).bitwise_and_(0xFFFF)
    value *= 0x7FEB352D
    value ^= (value >> 15).bitwise_and_(0x1FFFF)
    value *= 0x846CA68B - 2**32
    value ^= (value >> 16).bitwise_and_(0xFFFF)
    return value

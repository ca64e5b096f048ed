"""Counter-based (stateless) RNG keyed by (seed, epoch, slot).

Augmentation keyed by (seed, epoch, slot) gives a sample the same draw on one GPU and on sixty-four,
before and after a restart; a stateful generator gives neither.
"""

import hashlib

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a bijective scramble of 64-bit integers.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195).
    """
    with np.errstate(over="ignore"):
        value = value + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def row_keys(
    seed: int, epoch: int, slots: npt.NDArray[np.int64], stream: str
) -> npt.NDArray[np.int32]:
    """Return 32 random bits per slot, from which a device makes as many numbers as it needs.

    Shape: (len(slots),).
    """
    mixed = mix64(mix64(slots.astype(np.uint64)) ^ _key(seed, epoch, stream))
    return (mixed >> np.uint64(32)).astype(np.uint32).view(np.int32)


def uniforms(
    seed: int, epoch: int, slots: npt.NDArray[np.int64], stream: str, count: int
) -> npt.NDArray[np.float32]:
    """Return numbers in [0, 1), one row per slot.

    Shape: (len(slots), count).

    Args:
        seed: The run's seed.
        epoch: The epoch.
        slots: Slots of the epoch.
        stream: What the numbers are for; streams are independent.
        count: Numbers per slot.
    """
    key = _key(seed, epoch, stream)
    with np.errstate(over="ignore"):
        first = np.multiply(slots.astype(np.uint64)[:, None], count, dtype=np.uint64)
        counters = first + np.arange(count, dtype=np.uint64)
    return ((mix64(mix64(counters) ^ key) >> np.uint64(40)).astype(np.float64) / 2.0**24).astype(
        np.float32
    )


def _key(seed: int, epoch: int, stream: str) -> np.uint64:
    digest = hashlib.sha256(f"{seed}:{epoch}:{stream}".encode()).digest()
    return np.uint64(int.from_bytes(digest[:8]))

"""What the recording adds: wander, hum, muscle, motion, loose electrodes, swapped cables.

Noise arises at electrodes and is differenced into leads, so that leads share it as they do in life.

Source: kinds and sizes follow Moody, Muldrow & Mark, Comput Cardiol 1984;11:381 (the noise stress
test: baseline wander, muscle artefact, electrode motion); swapped cables follow Batchvarov et al.,
Europace 2007;9:1081.
"""

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float32]

RAIL_MV = 5.0
"""Where a cart's amplifier stops."""
POOR_QUALITY_GAIN = 4.0

_ELECTRODES_TO_LEADS = np.zeros((8, 9), np.float32)
"""Rows I, II, V1-V6; columns RA, LA, LL, V1-V6. Chest leads refer to Wilson's terminal."""
_ELECTRODES_TO_LEADS[0, :2] = [-1, 1]
_ELECTRODES_TO_LEADS[1, [0, 2]] = [-1, 1]
_ELECTRODES_TO_LEADS[2:, 3:] = np.eye(6)
_ELECTRODES_TO_LEADS[2:, :3] = -1 / 3


def with_noise(
    rng: np.random.Generator,
    leads: Signal,
    fs: float,
    level: float,
    flags: frozenset[str],
    mains_hz: float,
) -> Signal:
    """Return leads I, II, V1-V6 with noise of the usual size times `level`, and the artefacts.

    Shape:
        (8, num_samples), mV.
    """
    num_samples = leads.shape[1]
    if "poor_quality" in flags:
        level *= POOR_QUALITY_GAIN
    hum_mv = 0.06 if "mains_hum" in flags else 0.004
    electrodes = _electrode_noise(rng, fs, num_samples, level, hum_mv, mains_hz)
    if flags & {"motion", "clipping"}:
        electrodes += _motion(rng, fs, num_samples, 6.0 if "clipping" in flags else 1.0)
    leads = leads + _ELECTRODES_TO_LEADS @ electrodes
    if "clipping" in flags:
        np.clip(leads, -RAIL_MV, RAIL_MV, out=leads)
    if "lead_off" in flags:  # An electrode in the air picks up hum and nothing of the heart.
        lead = int(rng.integers(2, 8))
        time_s = np.arange(num_samples) / fs
        leads[lead] = 0.02 * np.sin(2 * np.pi * mains_hz * time_s) + 0.1 * electrodes[lead + 1]
    return leads


def reversed_leads(leads: Signal, flags: frozenset[str]) -> Signal:
    """Return leads I, II, V1-V6 as swapped cables show them. Wilson's terminal does not change."""
    one, two = leads[0].copy(), leads[1].copy()
    if "arm_leads_reversed" in flags:  # Right and left arm: I turns over, II and III change places.
        leads[0], leads[1] = -one, two - one
    elif "leg_lead_reversed" in flags:  # Right arm and left leg.
        leads[0], leads[1] = one - two, -two
    if "chest_leads_reversed" in flags:  # V1 and V3.
        leads[[2, 4]] = leads[[4, 2]]
    return leads


def _electrode_noise(
    rng: np.random.Generator,
    fs: float,
    num_samples: int,
    level: float,
    hum_mv: float,
    mains_hz: float,
) -> Signal:
    """Return baseline wander (breathing, drift), hum with its third harmonic, and muscle.

    Shape:
        (9, num_samples), mV: RA, LA, LL, V1-V6.
    """
    time_s = np.arange(num_samples, dtype=np.float32) / np.float32(fs)
    tones_hz = np.array(
        [rng.uniform(0.15, 0.35), rng.uniform(0.35, 0.6), 0.06, mains_hz, 3 * mains_hz], np.float32
    )
    angles = (2 * np.pi * tones_hz[:, None]) * time_s
    angles += rng.uniform(0, 2 * np.pi, (5, 1)).astype(np.float32)
    tones = np.sin(angles, out=angles)
    weights = rng.standard_normal((9, 5)).astype(np.float32)
    weights[:, :3] *= level * 0.035 * rng.lognormal(0.0, 0.5) * np.array([1.0, 0.5, 1.0])
    weights[:, 3:] *= level * hum_mv * rng.lognormal(0.0, 0.4) * np.array([1.0, 0.2])
    # Two bytes make a triangular distribution: near enough to a normal one, five times as fast.
    bytes_ = np.frombuffer(rng.bytes(18 * (num_samples + 1)), np.int8).reshape(2, 9, -1)
    muscle = bytes_[0].astype(np.float32)
    muscle += bytes_[1]
    # The difference tilts the spectrum towards high frequencies, where muscle noise lies.
    electrodes = muscle[:, 1:] - np.float32(0.6) * muscle[:, :-1]
    electrodes *= np.float32(level * 0.0045 / 104.5 * rng.lognormal(0.0, 0.5))
    electrodes += weights @ tones
    result: Signal = electrodes
    return result


def _motion(rng: np.random.Generator, fs: float, num_samples: int, size_mv: float) -> Signal:
    """Return electrodes that are pulled: a jump that decays within a second or so.

    Shape:
        (9, num_samples), mV.
    """
    electrodes = np.zeros((9, num_samples), np.float32)
    for _ in range(int(rng.integers(2, 5))):
        first = int(rng.uniform(0.0, 0.9) * num_samples)
        time_s = np.arange(num_samples - first) / fs
        decay_s = rng.uniform(0.15, 0.8)
        pull = (1.0 - np.exp(-time_s / 0.03)) * np.exp(-time_s / decay_s)
        size = size_mv * rng.uniform(0.8, 1.6) * rng.choice([-1.0, 1.0])
        electrodes[int(rng.integers(0, 9)), first:] += (size * pull).astype(np.float32)
    return electrodes

"""What goes wrong with a record: faults of the signal, faults of its files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def bad_kind(draw: np.random.Generator, rates: Mapping[str, float]) -> str:
    """Return the one thing wrong with a record, or an empty string."""
    left = draw.random()
    for kind, rate in rates.items():
        left -= rate
        if left < 0:
            return kind
    return ""


def spoil(
    draw: np.random.Generator,
    signal: NDArray[np.float32],
    fs: float,
    bad: str,
    few_missing: bool,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return the signal with its fault, and the leads that are in it."""
    num_samples = signal.shape[1]
    lead = int(draw.integers(12))
    leads: tuple[str, ...] = LEADS
    if bad == "not_12_leads":
        number = int(draw.choice([3, 8, 11]))
        signal, leads = signal[:number], LEADS[:number]
    elif bad == "all_zero":
        signal = np.zeros_like(signal)
    elif bad == "constant_lead":
        signal[lead] = np.float32(draw.choice([0.0, 0.35, -1.2]))
    elif bad == "too_short":
        signal = signal[:, : int(fs * draw.uniform(0.4, 3.5))]
    elif bad == "missing_samples":
        first = int(draw.uniform(0.0, 0.5) * num_samples)
        signal[lead, first : first + int(draw.uniform(0.05, 0.4) * num_samples)] = np.nan
    elif bad == "beyond_20_mv":
        first = int(draw.uniform(0.1, 0.8) * num_samples)
        signal[lead, first : first + int(0.1 * fs)] += np.float32(draw.uniform(26.0, 30.0))
    elif few_missing:
        first = int(draw.uniform(0.1, 0.8) * num_samples)
        signal[lead, first : first + int(draw.integers(2, max(3, num_samples // 150)))] = np.nan
    return signal, leads


def spoil_files(draw: np.random.Generator, path: Path, suffix: str, bad: str) -> None:
    """Damage the two files of a record as `bad` says."""
    header, signal = path.with_name(f"{path.name}.hea"), path.with_name(f"{path.name}{suffix}")
    if bad == "missing_signal_file":
        signal.unlink()
    elif bad == "truncated_signal":
        content = signal.read_bytes()
        signal.write_bytes(content[: int(draw.uniform(0.05, 0.95) * len(content))])
    elif bad == "unreadable_header":
        header.write_bytes(
            b"" if draw.random() < 0.3 else draw.integers(128, 256, 200).astype(np.uint8).tobytes()
        )

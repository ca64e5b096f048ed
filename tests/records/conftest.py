"""Records made on the spot: an independent writer for the formats the lean reader decodes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "signal"
LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def pack_212(values: np.ndarray) -> bytes:
    """12-bit pairs, one at a time, after the specification's text (not after our decoder)."""
    flat = [int(value) & 0xFFF for value in values.ravel()]
    packed = bytearray()
    for first, second in zip(flat[::2], [*flat[1::2], 0][: len(flat[::2])], strict=True):
        packed += bytes([first & 0xFF, (first >> 8) | ((second >> 8) << 4), second & 0xFF])
    return bytes(packed[: (3 * len(flat) + 1) // 2])


@pytest.fixture
def write_record(tmp_path: Path) -> Callable[..., Path]:
    """Write digital (num_samples, num_leads) as a WFDB record and return its path, bare."""

    def write(
        digital: np.ndarray,
        fmt: str = "16",
        gains: Sequence[str] | str = "1000/mV",
        names: Sequence[str] = LEADS,
        fs: str = "500",
        start: str = "",
        comments: Sequence[str] = (),
        name: str = "record",
        adc_zero: int = 0,
    ) -> Path:
        num_samples, count = digital.shape
        gains = [gains] * count if isinstance(gains, str) else gains
        extension = "mat" if fmt == "16+24" else "dat"
        lines = [f"{name} {count} {fs} {num_samples} {start}".rstrip()]
        lines += [
            f"{name}.{extension} {fmt} {gain} 16 {adc_zero} 0 0 0 {lead}"
            for gain, lead in zip(gains, names[:count], strict=True)
        ]
        lines += [f"#{comment}" for comment in comments]
        (tmp_path / f"{name}.hea").write_text("\n".join(lines) + "\n")
        content = pack_212(digital) if fmt == "212" else digital.astype("<i2").tobytes()
        if fmt == "16+24":
            prefix = np.array([30, count, num_samples, 0, 4], "<i4").tobytes() + b"val\0"
            content = prefix + content
        (tmp_path / f"{name}.{extension}").write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def profile_config() -> Callable[..., dict[str, Any]]:
    """The mapping of a profile's YAML file, with overrides on the first level."""

    def load(profile: str, **overrides: Any) -> dict[str, Any]:
        config = yaml.safe_load((CONFIGS / f"{profile}.yaml").read_text())
        assert isinstance(config, dict)
        return {**config, **overrides}

    return load


def fake_ecg(num_leads: int = 12, duration_s: float = 10, fs: float = 500, seed: int = 0) -> Any:
    """Beats, wander, hum and noise: float64 (num_leads, num_samples) in mV."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * fs)) / fs
    phase = (time % 0.8) - 0.3
    beat = 1.2 * np.exp(-((phase / 0.012) ** 2)) + 0.3 * np.exp(-(((phase - 0.25) / 0.05) ** 2))
    gains = rng.uniform(-1.5, 1.5, (num_leads, 1))
    wander = rng.uniform(0.1, 0.6, (num_leads, 1)) * np.sin(2 * np.pi * 0.23 * time)
    hum = 0.05 * np.sin(2 * np.pi * 50 * time)
    offset = rng.uniform(-0.5, 0.5, (num_leads, 1))
    return gains * beat + wander + hum + offset + rng.normal(0, 0.01, (num_leads, len(time)))


@pytest.fixture
def make_ecg() -> Callable[..., Any]:
    """`fake_ecg`, as a fixture so that test modules need not import a conftest."""
    return fake_ecg

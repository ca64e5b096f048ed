"""WFDB records written fast: one header text and one block of interleaved int16.

`.dat` (format 16) and `.mat` (format 16+24: a MATLAB v4 matrix `val` of 12 x N, which is the same
interleaved int16 behind 24 bytes) differ only in those bytes. `wfdb.wrsamp` takes 6 ms for this.
"""

import struct
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def quantise(signal: NDArray[np.float32], gain: float, baseline: int = 0) -> NDArray[np.int16]:
    """Return digital samples, time first. Shape: (L, T) mV -> (T, L). Non-finite becomes -32768."""
    scaled = signal.T * np.float32(gain) + np.float32(baseline)
    digital = np.rint(np.clip(scaled, -32767, 32767), out=scaled)
    digital[~np.isfinite(scaled)] = -32768
    result: NDArray[np.int16] = digital.astype(np.int16)
    return result


def header_text(
    stem: str,
    digital: NDArray[np.int16],
    lead_names: Sequence[str],
    fs: float,
    gain: float,
    baseline: int,
    suffix: str,
    start_time: datetime | None = None,
) -> str:
    """Return the text of the .hea file of `digital` (T, L)."""
    file_format = "16+24" if suffix == ".mat" else "16"
    when = f" {start_time:%H:%M:%S %d/%m/%Y}" if start_time else ""
    lines = [f"{stem} {len(lead_names)} {fs:g} {len(digital)}{when}"]
    checksums = digital.sum(axis=0, dtype=np.int64).astype(np.int16)  # modulo 2^16, signed
    initial = digital[0] if len(digital) else np.zeros(len(lead_names), np.int16)
    lines += [
        f"{stem}{suffix} {file_format} {gain:g}({baseline})/mV 16 0 {first} {checksum} 0 {lead}"
        for lead, first, checksum in zip(
            lead_names, initial.tolist(), checksums.tolist(), strict=True
        )
    ]
    return "\n".join(lines) + "\n"


def signal_bytes(digital: NDArray[np.int16], suffix: str) -> bytes:
    """Return the content of the signal file of `digital` (T, L)."""
    num_samples, num_leads = digital.shape
    samples = np.ascontiguousarray(digital, dtype="<i2").tobytes()
    if suffix != ".mat":
        return samples
    # MATLAB level 4: type 30 = little-endian int16 full matrix, rows, columns, real, name length.
    return struct.pack("<5i", 30, num_leads, num_samples, 0, 4) + b"val\0" + samples


def write_record(
    folder: Path,
    stem: str,
    digital: NDArray[np.int16],
    lead_names: Sequence[str],
    fs: float,
    gain: float,
    baseline: int,
    suffix: str,
    start_time: datetime | None = None,
) -> None:
    """Write header and signal file into `folder`, which exists."""
    text = header_text(stem, digital, lead_names, fs, gain, baseline, suffix, start_time)
    (folder / f"{stem}.hea").write_text(text)
    (folder / f"{stem}{suffix}").write_bytes(signal_bytes(digital, suffix))

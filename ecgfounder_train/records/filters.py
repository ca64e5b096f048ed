"""Resampling and filters on (num_leads, num_samples) float64 arrays, all zero-phase.

Coefficients are designed once per (parameters, rate): a build meets two or three rates in ten
million records.
"""

from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import signal as sps

Signal = NDArray[np.float64]


def interpolate_missing(ecg: Signal) -> Signal:
    """Return `ecg` with NaN replaced linearly from the neighbours (at the ends: the nearest)."""
    ecg = ecg.copy()
    for row in ecg:
        missing = np.isnan(row)
        if missing.any() and not missing.all():
            known = np.flatnonzero(~missing)
            row[missing] = np.interp(np.flatnonzero(missing), known, row[known])
    return ecg


def resample_linear(ecg: Signal, fs_in: float, fs_out: float) -> Signal:
    """Return `ecg` on the grid of `fs_out`, by straight lines (what the published regimes do).

    Upsampling only makes sense here: on the way down, straight lines alias. Sample k lies at
    k / fs_out; the last few repeat the final value instead of stretching the time axis, which
    would shift late beats.
    """
    if fs_in == fs_out:
        return ecg
    num_samples = ecg.shape[1]
    positions = np.arange(_resampled_length(num_samples, fs_in, fs_out)) * (fs_in / fs_out)
    left = np.minimum(positions.astype(np.intp), max(num_samples - 2, 0))
    weight = np.minimum(positions - left, 1.0)
    right = np.minimum(left + 1, num_samples - 1)
    return np.asarray(ecg[:, left] * (1 - weight) + ecg[:, right] * weight)


def resample_polyphase(ecg: Signal, fs_in: float, fs_out: float) -> Signal:
    """Return `ecg` at `fs_out` through an anti-aliasing FIR filter (Kaiser window, beta 8.6).

    Flat to 80 % of the lower Nyquist rate, more than 80 dB down where it would alias into that
    band. The ends are extended by point reflection: SciPy's own zero padding makes an artefact of
    every recording that does not start at 0 mV.
    """
    if fs_in == fs_out:
        return ecg
    ratio = Fraction(fs_out / fs_in).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    taps = _polyphase_taps(up, down)
    num_samples = ecg.shape[1]
    reach = len(taps) // 2 // up + 1
    pad = min(-(-reach // down) * down, (num_samples - 1) // down * down)
    padded = _extend(ecg, pad) if pad else ecg
    wanted = _resampled_length(num_samples, fs_in, fs_out)
    start = pad * up // down
    result = sps.resample_poly(padded, up, down, axis=1, window=taps)[:, start : start + wanted]
    if result.shape[1] < wanted:  # the rate was rounded to a ratio of small numbers
        result = np.pad(result, ((0, 0), (0, wanted - result.shape[1])), mode="edge")
    return np.asarray(result)


def _resampled_length(num_samples: int, fs_in: float, fs_out: float) -> int:
    return max(round(num_samples * fs_out / fs_in), 1)


@lru_cache(maxsize=64)
def _polyphase_taps(up: int, down: int) -> Signal:
    widest = max(up, down)
    half = 29 * widest  # beta 8.6: a transition of 0.2 of the lower Nyquist rate
    return np.asarray(sps.firwin(2 * half + 1, 0.9 / widest, window=("kaiser", 8.6)))


def _extend(ecg: Signal, pad: int) -> Signal:
    """Return `ecg` with `pad` samples more at each end, reflected through the end points."""
    left = 2 * ecg[:, :1] - ecg[:, pad:0:-1]
    right = 2 * ecg[:, -1:] - ecg[:, -2 : -pad - 2 : -1]
    return np.concatenate([left, ecg, right], axis=1)


@lru_cache(maxsize=64)
def _notch(frequency_hz: float, quality: float, fs: float) -> tuple[Signal, Signal]:
    b, a = sps.iirnotch(frequency_hz, quality, fs)
    return b, a


@lru_cache(maxsize=64)
def _butter(kind: str, order: int, edges: tuple[float, ...], fs: float) -> Signal:
    wanted = edges if len(edges) > 1 else edges[0]
    return np.asarray(sps.butter(order, wanted, kind, fs=fs, output="sos"))


def notch(ecg: Signal, fs: float, frequency_hz: float, quality: float) -> Signal:
    """Return `ecg` without mains hum: second-order notch, forwards and backwards."""
    b, a = _notch(frequency_hz, quality, fs)
    return np.asarray(sps.filtfilt(b, a, ecg, axis=1))


def butterworth(ecg: Signal, fs: float, kind: str, order: int, *edges_hz: float) -> Signal:
    """Return `ecg` through a Butterworth filter, forwards and backwards.

    Second-order sections, because a 0.67 Hz edge at 500 Hz puts the poles of the single
    polynomial within rounding of the unit circle. The padding is that of `scipy.signal.filtfilt`,
    three times the polynomial's length, so that the published functions' ends are met too.
    """
    num_coefficients = order * len(edges_hz) + 1
    sos = _butter(kind, order, edges_hz, fs)
    return np.asarray(sps.sosfiltfilt(sos, ecg, axis=1, padlen=3 * num_coefficients))


@lru_cache(maxsize=64)
def _low_pass_taps(cutoff_hz: float, transition_hz: float, fs: float) -> Signal:
    half = int(np.ceil(3.3 * fs / transition_hz / 2))  # Hamming window: 3.3 / transition
    return np.asarray(sps.firwin(2 * half + 1, cutoff_hz + transition_hz / 2, fs=fs))


def fir_lowpass(ecg: Signal, fs: float, cutoff_hz: float, transition_hz: float) -> Signal:
    """Return `ecg` through a symmetric Hamming FIR: flat to `cutoff_hz`, then the transition."""
    taps = _low_pass_taps(cutoff_hz, transition_hz, fs)
    pad = min(len(taps) // 2, ecg.shape[1] - 1)
    extended = _extend(ecg, pad)
    filtered = sps.fftconvolve(extended, taps[None], mode="same", axes=1)
    return np.asarray(filtered[:, pad : pad + ecg.shape[1]])


def subtract_running_median(ecg: Signal, fs: float, window_s: float) -> Signal:
    """Return `ecg` minus its running median; beyond the ends counts as zero, as published.

    201 samples for 0.4 s at 500 Hz: the published ``int(0.4 * fs) + 1``, made odd.
    """
    width = int(window_s * fs) + 1
    width += width % 2 == 0
    width = min(width, 2 * ((ecg.shape[1] - 1) // 2) + 1)
    baseline = np.stack([sps.medfilt(row, width) for row in ecg])
    return np.asarray(ecg - baseline)

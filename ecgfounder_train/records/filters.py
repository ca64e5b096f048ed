"""Resampling and filters on (num_leads, num_samples) float64 arrays, all zero-phase.

The loops are compiled (`records.kernels`), imported at the first use: numba costs half a second.
Coefficients are designed once per (parameters, rate): a build meets two or three rates in ten
million records.
"""

from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import signal as sps

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason

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
    from ecgfounder_train.records.kernels import straight_lines

    return straight_lines(ecg, fs_in / fs_out, _resampled_length(ecg.shape[1], fs_in, fs_out))


def resample_polyphase(ecg: Signal, fs_in: float, fs_out: float) -> Signal:
    """Return `ecg` at `fs_out` through an anti-aliasing FIR filter (Kaiser window, beta 8.6).

    Flat to 80 % of the lower Nyquist rate, more than 80 dB down where it would alias into that
    band. The ends are extended by point reflection: SciPy's own zero padding makes an artefact of
    every recording that does not start at 0 mV.

    Source: scipy.signal.resample_poly between the ends.
    """
    from ecgfounder_train.records.kernels import polyphase

    if fs_in == fs_out:
        return ecg
    ratio = Fraction(fs_out / fs_in).limit_denominator(1000)
    up, down = ratio.numerator, ratio.denominator
    taps = _polyphase_taps(up, down)
    num_samples = ecg.shape[1]
    reach = len(taps) // 2 // up + 1
    pad = min(-(-reach // down) * down, (num_samples - 1) // down * down)
    # A rate that is not a ratio of small numbers is rounded to one; the last output is held then.
    wanted = _resampled_length(num_samples, fs_in, fs_out)
    there = min(wanted, -(-(num_samples + pad) * up // down))
    result = polyphase(_extend(ecg, pad), taps * up, up, down, pad * up // down, there)
    if there < wanted:
        result = np.pad(result, ((0, 0), (0, wanted - there)), mode="edge")
    return result


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


class Cascade(NamedTuple):
    """Second-order sections, scaled so that b0 = a0 = 1, and what running them needs."""

    sections: Signal
    """(num_sections, 4): b1, b2, a1, a2."""
    start: Signal
    """(num_sections, 2): states in the steady state of a constant 1."""
    gain: float
    pad: int
    """Samples of reflection at each end."""


def _cascade(sos: Signal, pad: int) -> Cascade:
    scaled = sos.copy()
    scaled[:, :3] /= sos[:, :1]
    sections = np.ascontiguousarray(scaled[:, [1, 2, 4, 5]])
    return Cascade(sections, sps.sosfilt_zi(scaled), float(np.prod(sos[:, 0])), pad)


@lru_cache(maxsize=64)
def _notch(frequency_hz: float, quality: float, fs: float) -> Cascade:
    b, a = sps.iirnotch(frequency_hz, quality, fs)
    return _cascade(np.concatenate([b, a])[None], 3 * len(b))


@lru_cache(maxsize=64)
def _butter(kind: str, order: int, edges: tuple[float, ...], fs: float) -> Cascade:
    wanted = edges if len(edges) > 1 else edges[0]
    sos = sps.butter(order, wanted, kind, fs=fs, output="sos")
    return _cascade(sos, 3 * (order * len(edges) + 1))


def _forward_backward(ecg: Signal, cascade: Cascade) -> Signal:
    from ecgfounder_train.records.kernels import forward_backward

    if ecg.shape[1] <= cascade.pad:  # only reachable with a minimum length of milliseconds
        raise RejectedRecordError(
            RejectReason.TOO_SHORT, f"{ecg.shape[1]} samples are too few for a filter"
        )
    return forward_backward(ecg, *cascade)


def notch(ecg: Signal, fs: float, frequency_hz: float, quality: float) -> Signal:
    """Return `ecg` without mains hum: second-order notch, forwards and backwards.

    Raises:
        RejectedRecordError: TOO_SHORT, a handful of samples.

    Source: scipy.signal.iirnotch and filtfilt, as the official ``util.py`` calls them.
    """
    return _forward_backward(ecg, _notch(frequency_hz, quality, fs))


def butterworth(ecg: Signal, fs: float, kind: str, order: int, *edges_hz: float) -> Signal:
    """Return `ecg` through a Butterworth filter, forwards and backwards.

    Second-order sections, because a 0.67 Hz edge at 500 Hz puts the poles of the single
    polynomial within rounding of the unit circle. The padding is that of `scipy.signal.filtfilt`,
    three times the polynomial's length, so that the published functions' ends are met too.

    Raises:
        RejectedRecordError: TOO_SHORT, a handful of samples.

    Source: scipy.signal.butter and sosfiltfilt.
    """
    return _forward_backward(ecg, _butter(kind, order, edges_hz, fs))


@lru_cache(maxsize=64)
def _low_pass_taps(cutoff_hz: float, transition_hz: float, fs: float) -> Signal:
    half = int(np.ceil(3.3 * fs / transition_hz / 2))  # Hamming window: 3.3 / transition
    return np.asarray(sps.firwin(2 * half + 1, cutoff_hz + transition_hz / 2, fs=fs))


def fir_lowpass(ecg: Signal, fs: float, cutoff_hz: float, transition_hz: float) -> Signal:
    """Return `ecg` through a symmetric Hamming FIR: flat to `cutoff_hz`, then the transition.

    The ends are extended by point reflection.

    Source: scipy.signal.firwin.
    """
    from ecgfounder_train.records.kernels import symmetric_fir

    taps = _low_pass_taps(cutoff_hz, transition_hz, fs)
    half = len(taps) // 2
    pad = min(half, ecg.shape[1] - 1)
    extended = _extend(ecg, pad)
    if pad < half:  # a recording shorter than the filter: zeros beyond its reflection
        extended = np.pad(extended, ((0, 0), (half - pad, half - pad)))
    return symmetric_fir(extended, taps)


def subtract_running_median(ecg: Signal, fs: float, window_s: float) -> Signal:
    """Return `ecg` minus its running median; beyond the ends counts as zero, as published.

    201 samples for 0.4 s at 500 Hz: the published ``int(0.4 * fs) + 1``, made odd.

    Source: scipy.signal.medfilt, as the official ``util.py`` calls it.
    """
    from ecgfounder_train.records.kernels import subtract_median

    width = int(window_s * fs) + 1
    width += width % 2 == 0
    width = min(width, 2 * ((ecg.shape[1] - 1) // 2) + 1)
    return subtract_median(ecg, width)

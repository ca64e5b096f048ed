"""What a person would notice on the strip before believing a result, said per recording.

Nothing here changes a sample. All checks together take 1.5 ms on ten seconds of twelve leads; their
limits were set on the open data sets (PTB-XL, CinC 2017 and 2021), where few recordings may be
called out. LUDB's limb leads do not add up indeed: each has a gain of its own.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import rfft

from ecgfounder_train.inference.remarks import Remark, WarningCode
from ecgfounder_train.records import EcgRecord, ProfiledRecord, SignalProfile

Signal = NDArray[np.float32]

_MIN_SWING_MV, _MAX_SWING_MV = 0.05, 8.0
_USUAL_SWING_MV = (0.2, 5.0)
_FLAT_S = 1.0
_FLAT_MV = 0.01
_CLIP_RUN = 4
_MIN_CLIPPED_RUNS = 3
_MIN_CLIP_MV = 0.5
_MAINS_MV = 0.05
_MAINS_ABOVE_NEIGHBOURS = 10.0
_MAX_MISFIT = 0.25
_GOOD_MISFIT = 0.1
_REVERSED = -0.6
_UPRIGHT = 0.3


def check_signal(record: EcgRecord, profile: SignalProfile) -> tuple[Remark, ...]:
    """Return what is odd about a recording whose leads have been resolved, before any filter."""
    found: list[Remark] = []
    signal = np.nan_to_num(record.signal)
    found += _unit(signal, record.fs)
    found += _rate(record.fs, profile)
    found += _flat(record, signal)
    found += _clipped(record, signal)
    found += _mains(record, signal)
    found += _limb_leads(record, signal)
    found += _arm_reversal(record, signal)
    return tuple(found)


def check_windows(
    record: EcgRecord, profiled: ProfiledRecord, profile: SignalProfile
) -> tuple[Remark, ...]:
    """Return what the profile had to do to make windows of the recording."""
    found: list[Remark] = []
    duration_s = record.signal.shape[1] / record.fs
    missing = float(np.isnan(record.signal).mean(axis=1).max())
    if missing > 0:
        detail = f"{missing:.2%} of a lead was missing and was joined by straight lines"
        found.append(Remark(WarningCode.INTERPOLATED, detail))
    shortest = min(window.valid_num_samples for window in profiled.windows) / profile.fs
    if shortest < profile.duration_s - 0.05:
        detail = f"{shortest:.1f} s of a {profile.duration_s:g} s window recorded, the rest is zero"
        found.append(Remark(WarningCode.PADDED, detail))
    used_s = sum(window.valid_num_samples for window in profiled.windows) / profile.fs
    return (*found, *cropped_remark(used_s, duration_s, profile))


def cropped_remark(used_s: float, duration_s: float, profile: SignalProfile) -> tuple[Remark, ...]:
    """Return the remark that the windows cover a part of the recording, where they do."""
    if used_s >= duration_s - max(0.1, 0.02 * duration_s):
        return ()
    policy = profile.windows["policy"]
    detail = f"{used_s:g} s of {duration_s:.1f} s were used (windows={policy})"
    if policy != "consecutive":
        detail += "; windows=consecutive uses all"
    return (Remark(WarningCode.CROPPED, detail),)


def typical_swing(signal: Signal, fs: float) -> float:
    """Return the median over leads and seconds of the peak-to-peak amplitude, in mV."""
    second = max(round(fs), 1)
    whole = signal.shape[1] // second * second
    parts = signal[:, :whole].reshape(len(signal), -1, second) if whole else signal[:, None]
    swings = np.ptp(parts, axis=2)
    moving = swings[swings > 0]
    return float(np.median(moving)) if len(moving) else 0.0


def unit_hint(swing_mv: float) -> str:
    """Return which unit would make a swing that of an ECG; nothing where none does."""
    low, high = _USUAL_SWING_MV
    for unit, factor in (("uV", 1e-3), ("V", 1e3), ("nV", 1e-6)):
        if low <= swing_mv * factor <= high:
            return f"input_unit={unit} would make that {swing_mv * factor:.2g} mV"
    return "no unit makes that an ECG: are these raw values of a converter?"


def _unit(signal: Signal, fs: float) -> Iterator[Remark]:
    swing = typical_swing(signal, fs)
    if swing > 0 and not _MIN_SWING_MV <= swing <= _MAX_SWING_MV:
        detail = f"typical swing of {swing:.3g} mV, usual is about 1 mV; {unit_hint(swing)}"
        yield Remark(WarningCode.UNIT_SUSPECT, detail)


def _rate(fs: float, profile: SignalProfile) -> Iterator[Remark]:
    edges = [
        float(edge)
        for options in profile.stage_parameters.values()
        for key, edge in options.items()
        if key == "high_hz" and edge is not None
    ]
    edges += [
        float(profile.stage_parameters[stage]["cutoff_hz"])
        for stage in ("lowpass", "fir_lowpass")
        if stage in profile.stages
    ]
    upper = min([profile.fs / 2, *(edges or [50.0])])
    if fs < 2 * upper:
        detail = (
            f"recorded at {fs:g} Hz: nothing above {fs / 2:g} Hz is in it, and the model was "
            f"trained with content up to {upper:g} Hz"
        )
        yield Remark(WarningCode.LOW_RATE, detail)


def _flat(record: EcgRecord, signal: Signal) -> Iterator[Remark]:
    least = max(round(_FLAT_S * record.fs), 2)
    if signal.shape[1] <= least:
        return
    still = np.abs(np.diff(signal, axis=1)) < 1e-6
    everywhere: NDArray[np.bool_] = np.asarray(still.all(axis=0))
    longest = _longest_run(everywhere)
    if longest >= least and len(signal) > 1:
        detail = f"no lead changes for {longest / record.fs:.1f} s"
        yield Remark(WarningCode.GAP, detail)
    flat = []
    for row, name in enumerate(record.lead_names):
        own = still[row] & ~everywhere if len(signal) > 1 else still[row]
        if float(np.ptp(signal[row])) < _FLAT_MV or _longest_run(own) >= least:
            flat.append(name)
    if flat:
        detail = f"{', '.join(flat)} flat for {_FLAT_S:g} s or more"
        yield Remark(WarningCode.FLAT, detail)


def _runs(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the lengths of the stretches that are true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    lengths: NDArray[np.int64] = edges[1::2] - edges[::2]
    return lengths


def _longest_run(flags: NDArray[np.bool_]) -> int:
    return int(_runs(flags).max(initial=0)) if flags.any() else 0


def _clipped(record: EcgRecord, signal: Signal) -> Iterator[Remark]:
    clipped: dict[str, float] = {}
    centre = signal.mean(axis=1)
    for limits in (signal.max(axis=1), signal.min(axis=1)):
        at_limit = signal == limits[:, None]
        often = at_limit.sum(axis=1) >= _CLIP_RUN * _MIN_CLIPPED_RUNS
        for row in np.flatnonzero(often & (np.abs(limits - centre) >= _MIN_CLIP_MV)):
            if (_runs(at_limit[row]) >= _CLIP_RUN).sum() >= _MIN_CLIPPED_RUNS:
                clipped.setdefault(record.lead_names[row], float(limits[row]))
    if clipped:
        where = ", ".join(f"{name} at {limit:.3g} mV" for name, limit in clipped.items())
        yield Remark(WarningCode.CLIPPED, f"the amplifier's limit was reached: {where}")


def _mains(record: EcgRecord, signal: Signal) -> Iterator[Remark]:
    num_samples = signal.shape[1]
    if num_samples < 2 * record.fs:
        return
    # A Hann window keeps baseline wander out of the narrow band.
    taper = np.hanning(num_samples).astype(np.float32)
    spectrum = rfft((signal - signal.mean(axis=1, keepdims=True)) * taper)
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    power *= 2 / float(np.square(taper).sum()) / num_samples  # mean square of each bin in mV^2
    hertz = np.fft.rfftfreq(num_samples, 1 / record.fs)
    for frequency, code in ((50.0, WarningCode.MAINS_50), (60.0, WarningCode.MAINS_60)):
        if record.fs < 2 * frequency + 4:
            continue
        line = np.abs(hertz - frequency) <= 0.5
        beside = (np.abs(hertz - frequency) <= 4) & (np.abs(hertz - frequency) > 1.5)
        rms = np.sqrt(power[:, line].sum(axis=1))
        density = power[:, line].mean(axis=1) / (power[:, beside].mean(axis=1) + 1e-12)
        noisy = (rms > _MAINS_MV) & (density > _MAINS_ABOVE_NEIGHBOURS)
        if noisy.any():
            names = [name for name, bad in zip(record.lead_names, noisy, strict=True) if bad]
            detail = f"{frequency:g} Hz hum of up to {rms.max():.2g} mV (rms) on {', '.join(names)}"
            yield Remark(code, detail)


_LIMB_LEADS = ("I", "II", "III", "aVR", "aVL", "aVF")
_WEIGHTS = {"III": (-1.0, 1.0), "aVR": (-0.5, -0.5), "aVL": (1.0, -0.5), "aVF": (-0.5, 1.0)}
_SMALLEST_MV = 0.02


def _limb_leads(record: EcgRecord, signal: Signal) -> Iterator[Remark]:
    """Compare the limb leads with Einthoven's and Goldberger's equations."""
    names = [
        name
        for name in _LIMB_LEADS
        if name in record.lead_names and name not in record.derived_leads
    ]
    if names[:2] != ["I", "II"] or len(names) < 3:
        return
    # Everything follows from the covariances, also for leads that change places.
    covariance = np.cov(signal[[record.lead_names.index(name) for name in names]])
    misfit = _misfit(names, covariance)
    if misfit <= _MAX_MISFIT:
        return
    explained = _explanations(names, covariance)
    why = f": they would if {', or if '.join(explained)}" if explained else ""
    detail = f"limb leads do not add up (III = II - I and the like, off by {misfit:.0%}){why}"
    yield Remark(WarningCode.LIMB_LEADS, detail)


def _misfit(names: Sequence[str], covariance: NDArray[np.float64]) -> float:
    """Return the worst residual of a limb lead against I and II, in parts of its own size."""
    one, two = names.index("I"), names.index("II")
    worst = 0.0
    for row, name in enumerate(names):
        if name in _WEIGHTS:
            expected = np.zeros(len(names))
            expected[[one, two]] = _WEIGHTS[name]
            residual = -expected
            residual[row] += 1
            size = max(covariance[row, row], expected @ covariance @ expected, _SMALLEST_MV**2)
            worst = max(worst, float(residual @ covariance @ residual) / size)
    return float(np.sqrt(max(worst, 0.0)))


def _explanations(names: list[str], covariance: NDArray[np.float64]) -> list[str]:
    """Return the single mistakes under which the equations hold."""
    found = []
    for first, second in combinations(range(len(names)), 2):
        exchanged = list(names)
        exchanged[first], exchanged[second] = names[second], names[first]
        if _misfit(exchanged, covariance) < _GOOD_MISFIT:
            found.append(f"{names[first]} and {names[second]} changed names")
    for row, name in enumerate(names):
        signs = np.ones(len(names))
        signs[row] = -1
        if _misfit(names, covariance * np.outer(signs, signs)) < _GOOD_MISFIT:
            found.append(f"{name} were turned over")
    if not found and _fits_with_gains(names, covariance):
        found.append("each lead had a gain of its own")
    return found[:3]


def _fits_with_gains(names: list[str], covariance: NDArray[np.float64]) -> bool:
    """Whether each other limb lead is a sum of I and II with the right signs, of any size."""
    for row, name in enumerate(names[2:], start=2):
        weights = np.linalg.lstsq(covariance[:2, :2], covariance[:2, row], rcond=None)[0]
        left = covariance[row, row] - weights @ covariance[:2, row]
        if (weights * _WEIGHTS[name] < 0).any() or left > 0.1 * covariance[row, row]:
            return False
    return True


def _arm_reversal(record: EcgRecord, signal: Signal) -> Iterator[Remark]:
    """Compare lead I with V6: both look at the heart from the left, unless the arms are exchanged.

    Source: de Bie et al. 2014, doi:10.1093/europace/euu112 (correlation of I with V6).
    """
    names = record.lead_names
    if not {"I", "aVR", "V6"} <= set(names):
        return
    one, avr, v6 = (_qrs_part(signal[names.index(name)], record.fs) for name in ("I", "aVR", "V6"))
    if min(float(np.std(one)), float(np.std(v6))) < 0.02:
        return
    opposite = float(np.corrcoef(one, v6)[0, 1])
    with_avr = float(np.corrcoef(avr, v6)[0, 1])
    if opposite < _REVERSED and with_avr > _UPRIGHT:
        detail = (
            f"lead I runs against V6 (r = {opposite:.2f}) and aVR with it: right and left arm "
            "electrode may have been exchanged (or dextrocardia)"
        )
        yield Remark(WarningCode.ARM_REVERSAL, detail)


def _qrs_part(lead: Signal, fs: float) -> Signal:
    """Return the lead without its slow part: minus a moving mean of 0.6 s."""
    width = max(round(0.6 * fs), 1)
    total = np.cumsum(np.concatenate([np.zeros(1), lead.astype(np.float64)]))
    mean = (total[width:] - total[:-width]) / width
    start = (len(lead) - len(mean)) // 2
    fast: Signal = (lead[start : start + len(mean)] - mean).astype(np.float32)
    return fast


def summary(remarks: Sequence[Remark]) -> str:
    """Return the sentences of the remarks as one text."""
    return "; ".join(f"{remark.code.value}: {remark.detail}" for remark in remarks)

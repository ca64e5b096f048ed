"""When the heart beats: P waves, QRS complexes and pacing spikes of one recording on a time axis.

A rhythm knows nothing of leads or volts. `make_beats` turns findings into times; `waveform` draws
them. A new rhythm is one function here, registered in `RHYTHMS`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.simulate.anatomy import Anatomy

Floats = NDArray[np.float64]
Ints = NDArray[np.int8]

CONDUCTED, VENTRICULAR, PACED = 0, 1, 2
"""Kinds of QRS: over the His bundle, from the ventricle, from a ventricular electrode."""
P_SINUS, P_ECTOPIC, P_RETROGRADE = 0, 1, 2
"""Kinds of P wave: from the sinus node, from elsewhere in the atria, backwards from the node."""

P_PEAK_AFTER_ONSET_S = 0.050
R_AFTER_QRS_ONSET_S = 0.045
LEAD_IN_S = 2.0
"""Beats begin before the recording does, so that its first sample lies anywhere in a cycle."""


@dataclass(frozen=True)
class Findings:
    """What is to be seen in one ECG: rhythm, ventricular rate and the set of further findings."""

    rhythm: str = "sinus"
    rate_bpm: float = 72.0
    flags: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *flags: str, rhythm: str = "sinus", rate_bpm: float = 72.0) -> "Findings":
        """Return findings with these flags."""
        return cls(rhythm, rate_bpm, frozenset(flags))


@dataclass(frozen=True)
class Beats:
    """Events of a recording, in seconds from its first sample (also before it and after it).

    `atrial_rate_hz` is the rate of fibrillatory or flutter waves that go on all the time.
    """

    r_s: Floats
    kinds: Ints
    qt_s: Floats
    p_s: Floats
    p_kinds: Ints
    spikes_s: Floats = field(default_factory=lambda: np.empty(0))
    fibrillation_hz: float = 0.0
    flutter_hz: float = 0.0


def make_beats(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return the events of one recording of `duration_s` seconds.

    Source: QT follows the rate as in Framingham, QT = QTc - 0.154 (1 - RR)
    (Sagie et al., Am J Cardiol 1992;70:797).
    """
    beats = RHYTHMS[findings.rhythm](rng, findings, duration_s, anatomy)
    previous_rr = np.diff(beats.r_s, prepend=beats.r_s[0] - 60.0 / findings.rate_bpm)
    # The QT adapts within about a minute, so the beat follows the mean much more than its own RR.
    rr = 0.8 * previous_rr.mean() + 0.2 * previous_rr
    qtc_s = anatomy.qtc_s + (0.085 if "long_qt" in findings.flags else 0.0)
    wide = (beats.kinds != CONDUCTED) | bool(findings.flags & {"lbbb", "rbbb", "rbbb_lafb", "ivcd"})
    qt_s = qtc_s - 0.154 * (1.0 - rr) + 0.045 * wide
    return replace(beats, qt_s=np.clip(qt_s, 0.22, 0.62))


def _count(rate_bpm: float, duration_s: float) -> int:
    return int((duration_s + 2 * LEAD_IN_S) * rate_bpm / 60.0 * 1.15) + 4


def _start(rng: np.random.Generator) -> float:
    return float(-LEAD_IN_S + rng.uniform(0.0, 1.0))


def _sinus_intervals(
    rng: np.random.Generator, rate_bpm: float, count: int, respiratory: float
) -> Floats:
    """Return RR intervals with respiratory and slower variability.

    Source: the two spectral peaks of RR variability (breathing, and Mayer waves at 0.1 Hz) as in
    McSharry et al., IEEE Trans Biomed Eng 2003;50:289.
    """
    mean_s = 60.0 / rate_bpm
    time_s = np.arange(count) * mean_s
    breathing_hz, phase = rng.uniform(0.18, 0.32), rng.uniform(0, 2 * np.pi, 2)
    swing = respiratory * np.sin(2 * np.pi * breathing_hz * time_s + phase[0])
    swing += 0.3 * respiratory * np.sin(2 * np.pi * 0.1 * time_s + phase[1])
    swing += 0.005 * rng.standard_normal(count)
    intervals: Floats = mean_s * (1.0 + swing)
    return intervals


def _respiratory_amplitude(rng: np.random.Generator, findings: Findings) -> float:
    if "marked_sinus_arrhythmia" in findings.flags:
        return float(rng.uniform(0.2, 0.28))
    if "sinus_arrhythmia" in findings.flags:
        return float(rng.uniform(0.10, 0.15))
    # Fast hearts vary less (vagal tone is withdrawn).
    return float(rng.uniform(0.008, 0.03) * min(1.0, 70.0 / findings.rate_bpm))


def _spots(rng: np.random.Generator, times_s: Floats, duration_s: float, wanted: int) -> list[int]:
    """Return up to `wanted` beats well inside the recording, not next to one another."""
    inside = np.flatnonzero((times_s > 0.8) & (times_s < duration_s - 1.2))
    chosen: list[int] = []
    for index in rng.permutation(inside).tolist():
        if all(abs(index - other) > 2 for other in chosen):
            chosen.append(index)
        if len(chosen) == wanted:
            break
    return chosen


def _pr_s(rng: np.random.Generator, findings: Findings, anatomy: Anatomy) -> float:
    if "first_degree_av_block" in findings.flags:
        return float(rng.uniform(0.22, 0.32))
    if "short_pr" in findings.flags or "wpw" in findings.flags:
        return float(rng.uniform(0.085, 0.108))
    return anatomy.pr_s - 0.0004 * (findings.rate_bpm - 70.0)


def _p_before(r_s: Floats, pr_s: Floats | float) -> Floats:
    return r_s - R_AFTER_QRS_ONSET_S - pr_s + P_PEAK_AFTER_ONSET_S


def _with_p(
    r_s: Floats, kinds: Ints, pr_s: float, p_kinds: Ints, spikes_s: Floats | None = None
) -> Beats:
    """Return beats in which every conducted QRS follows a P wave."""
    conducted = kinds == CONDUCTED
    return Beats(
        r_s=r_s,
        kinds=kinds,
        qt_s=np.zeros_like(r_s),
        p_s=_p_before(r_s, pr_s)[conducted],
        p_kinds=p_kinds[conducted],
        spikes_s=np.empty(0) if spikes_s is None else spikes_s,
    )


def _without_p(
    r_s: Floats, kind: int = CONDUCTED, fibrillation_hz: float = 0.0, flutter_hz: float = 0.0
) -> Beats:
    return Beats(
        r_s=r_s,
        kinds=np.full(len(r_s), kind, np.int8),
        qt_s=np.zeros_like(r_s),
        p_s=np.empty(0),
        p_kinds=np.empty(0, np.int8),
        fibrillation_hz=fibrillation_hz,
        flutter_hz=flutter_hz,
    )


def _ventricular_ectopy(
    rng: np.random.Generator, intervals: Floats, start_s: float, duration_s: float, pattern: str
) -> Ints:
    """Shorten and lengthen `intervals` in place around PVCs; return the kinds of the beats."""
    kinds = np.zeros(len(intervals), np.int8)
    times_s = start_s + np.cumsum(intervals)
    if pattern == "bigeminy":
        spots = list(range(2, len(intervals) - 1, 2))
    else:
        spots = _spots(rng, times_s, duration_s, int(rng.integers(1, 4)))
    coupling = rng.uniform(0.55, 0.7)  # A focus couples to the beat before at a fixed interval.
    for index in spots:
        cycle_s = intervals[index]
        intervals[index] = coupling * cycle_s
        intervals[index + 1] = (2.0 - coupling) * cycle_s  # The full compensatory pause.
        kinds[index] = VENTRICULAR
    return kinds


def _sinus(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    count = _count(findings.rate_bpm, duration_s)
    start_s = _start(rng)
    intervals = _sinus_intervals(
        rng, findings.rate_bpm, count, _respiratory_amplitude(rng, findings)
    )
    kinds = np.zeros(count, np.int8)
    p_kinds = np.zeros(count, np.int8)
    if "bigeminy" in findings.flags:
        kinds = _ventricular_ectopy(rng, intervals, start_s, duration_s, "bigeminy")
    elif "pvc" in findings.flags:
        kinds = _ventricular_ectopy(rng, intervals, start_s, duration_s, "single")
    if "pac" in findings.flags:
        early = rng.uniform(0.58, 0.72)
        spots = _spots(rng, start_s + np.cumsum(intervals), duration_s, int(rng.integers(1, 4)))
        for index in spots:
            if kinds[index - 1 : index + 2].any():
                continue
            intervals[index + 1] *= 1.08  # The sinus node is reset: no full compensation.
            intervals[index] *= early
            p_kinds[index] = P_ECTOPIC
    if "sinus_pause" in findings.flags:
        # Where the interval ends, not where it begins, must lie inside the recording.
        times_s = start_s + np.cumsum(intervals)
        index = int(np.argmin(np.abs(times_s - rng.uniform(0.3, 0.5) * duration_s)))
        intervals[index + 1] = max(rng.uniform(2.2, 3.2), 1.8 * intervals[index])
    r_s = start_s + np.cumsum(intervals)
    return _with_p(r_s, kinds, _pr_s(rng, findings, anatomy), p_kinds)


def _ectopic_atrial(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    beats = _sinus(rng, findings, duration_s, anatomy)
    return replace(
        beats,
        p_s=beats.p_s + 0.02,
        p_kinds=np.full(len(beats.p_s), P_ECTOPIC, np.int8),
    )


def _multifocal_atrial(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    count = _count(findings.rate_bpm, duration_s)
    intervals = 60.0 / findings.rate_bpm * rng.gamma(30.0, 1 / 30.0, count)
    r_s = _start(rng) + np.cumsum(intervals)
    p_kinds = rng.integers(0, 3, count).astype(np.int8)
    return _with_p(r_s, np.zeros(count, np.int8), anatomy.pr_s, p_kinds)


def _atrial_fibrillation(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return irregularly irregular beats.

    Source: RR intervals of AF are close to a gamma distribution with a coefficient of variation of
    0.2-0.3 and no serial order (Goldstein & Barnett, Comput Biomed Res 1967;1:146).
    """
    count = _count(findings.rate_bpm, duration_s)
    variation = rng.uniform(0.20, 0.28)
    intervals = rng.gamma(variation**-2, variation**2, count)
    intervals = np.maximum(intervals / intervals.mean() * 60.0 / findings.rate_bpm, 0.29)
    start_s = _start(rng)
    kinds = np.zeros(count, np.int8)
    if "pvc" in findings.flags:
        kinds = _ventricular_ectopy(rng, intervals, start_s, duration_s, "single")
    beats = _without_p(start_s + np.cumsum(intervals), fibrillation_hz=float(rng.uniform(5.0, 8.0)))
    return replace(beats, kinds=kinds)


def _atrial_flutter(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    flutter_hz = float(rng.uniform(4.3, 5.4))
    count = _count(findings.rate_bpm, duration_s)
    ratio = max(2.0, flutter_hz * 60.0 / findings.rate_bpm)
    if "variable_av_block" in findings.flags:
        ratios = np.maximum(2, np.rint(ratio + rng.choice([-1, 0, 1], count)))
    else:
        ratios = np.full(count, 2.0 if "two_to_one" in findings.flags else max(2, round(ratio)))
    return _without_p(_start(rng) + np.cumsum(ratios / flutter_hz), flutter_hz=flutter_hz)


def _regular(rng: np.random.Generator, rate_bpm: float, duration_s: float, spread: float) -> Floats:
    count = _count(rate_bpm, duration_s)
    intervals = 60.0 / rate_bpm * (1.0 + spread * rng.standard_normal(count))
    return _start(rng) + np.cumsum(intervals)


def _junctional(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    r_s = _regular(rng, findings.rate_bpm, duration_s, 0.01)
    beats = _without_p(r_s)
    if rng.random() < 0.5:  # Half of them show the P wave that runs backwards, just after the QRS.
        return replace(beats, p_s=r_s + 0.11, p_kinds=np.full(len(r_s), P_RETROGRADE, np.int8))
    return beats


def _supraventricular_tachycardia(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    return _without_p(_regular(rng, findings.rate_bpm, duration_s, 0.004))


def _ventricular(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    return _without_p(_regular(rng, findings.rate_bpm, duration_s, 0.012), VENTRICULAR)


def _complete_heart_block(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    beats = _without_p(_regular(rng, findings.rate_bpm, duration_s, 0.01), VENTRICULAR)
    p_s = _regular(rng, float(rng.uniform(72, 98)), duration_s, 0.015)
    return replace(beats, p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8))


def _mobitz_1(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return a Wenckebach rhythm: PR grows, by less each time, until a P wave is not conducted."""
    cycle = int(rng.integers(3, 6))
    p_s = _regular(rng, findings.rate_bpm * cycle / (cycle - 1), duration_s, 0.01)
    step = (np.arange(len(p_s)) + int(rng.integers(cycle))) % cycle
    pr_s = anatomy.pr_s + 0.04 + 0.09 * np.sqrt(step)
    r_s = (p_s - P_PEAK_AFTER_ONSET_S + pr_s + R_AFTER_QRS_ONSET_S)[step < cycle - 1]
    return replace(_without_p(r_s), p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8))


def _paced(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return atrial (A), ventricular (V), atrial-sensed ventricular (ASV) or dual (AV) pacing."""
    mode = findings.rhythm.removeprefix("paced_")
    spread = 0.02 if mode == "atrial_sensed" else 0.0005  # A pacemaker is a clock.
    r_s = _regular(rng, findings.rate_bpm, duration_s, spread)
    av_delay_s = float(rng.uniform(0.14, 0.18))
    p_s = _p_before(r_s, av_delay_s)
    atrial_spikes_s = p_s - P_PEAK_AFTER_ONSET_S - 0.006
    ventricular_spikes_s = r_s - 0.068
    kind = CONDUCTED if mode == "atrial" else PACED
    beats = _without_p(r_s, kind)
    if mode == "ventricular":
        fibrillating = "atrial_fibrillation" in findings.flags
        fibrillation_hz = float(rng.uniform(5, 8)) if fibrillating else 0.0
        return replace(beats, spikes_s=ventricular_spikes_s, fibrillation_hz=fibrillation_hz)
    spikes_s = {
        "atrial": atrial_spikes_s,
        "atrial_sensed": ventricular_spikes_s,
        "dual": np.concatenate([atrial_spikes_s, ventricular_spikes_s]),
    }[mode]
    return replace(beats, p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8), spikes_s=spikes_s)


RhythmModel = Callable[[np.random.Generator, Findings, float, Anatomy], Beats]

RHYTHMS: dict[str, RhythmModel] = {
    "sinus": _sinus,
    "ectopic_atrial": _ectopic_atrial,
    "multifocal_atrial": _multifocal_atrial,
    "atrial_fibrillation": _atrial_fibrillation,
    "atrial_flutter": _atrial_flutter,
    "junctional": _junctional,
    "svt": _supraventricular_tachycardia,
    "vt": _ventricular,
    "idioventricular": _ventricular,
    "complete_heart_block": _complete_heart_block,
    "mobitz_1": _mobitz_1,
    "paced_atrial": _paced,
    "paced_ventricular": _paced,
    "paced_atrial_sensed": _paced,
    "paced_dual": _paced,
}

"""When the heart beats: P waves, QRS complexes and pacing spikes of one recording on a time axis.

A rhythm knows nothing of leads or volts. `make_beats` turns findings into times; `waveform` draws
them. A new rhythm is one function here, registered in `RHYTHMS`.

Source: what defines each rhythm follows Surawicz & Knilans, Chou's Electrocardiography in Clinical
Practice, 6th ed., parts on arrhythmias and pacing; where a function has a source of its own it
says so.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.events import (
    ABERRANT,
    CONDUCTED,
    FUSION,
    P_ECTOPIC,
    P_PEAK_AFTER_ONSET_S,
    P_RETROGRADE,
    PACED,
    PACED_BOTH,
    R_AFTER_QRS_ONSET_S,
    VENTRICULAR,
    Beats,
    Findings,
    Floats,
    draw_pr_s,
    draw_start_s,
    num_beats,
    p_before,
    regular,
    spots,
    without_p,
)
from ecgfounder_train.simulate.sinus import ATRIAL_SPIKE_S, DISTURBANCES, VENTRICULAR_SPIKE_S, sinus

__all__ = ["CONDUCTED", "DISTURBANCES", "RHYTHMS", "Beats", "Findings", "make_beats"]

_WIDE = frozenset({"lbbb", "rbbb", "rbbb_lafb", "rbbb_lpfb", "ivcd", "ivcb"})


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
    qtc_s = anatomy.qtc_s
    if "long_qt" in findings.flags:
        qtc_s += 0.095
    if "digitalis" in findings.flags:
        qtc_s -= 0.045
    wide = (beats.kinds != CONDUCTED) | bool(findings.flags & _WIDE)
    qt_s = qtc_s - 0.154 * (1.0 - rr) + 0.045 * wide
    # Repolarisation is over before the next beat, however fast that comes.
    return replace(beats, qt_s=np.clip(qt_s, 0.22, np.clip(0.72 * rr, 0.22, 0.62)))


def _ectopic_atrial(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    beats = sinus(rng, findings, duration_s, anatomy)
    return replace(beats, p_s=beats.p_s + 0.02, p_kinds=np.full(len(beats.p_s), P_ECTOPIC, np.int8))


def _multifocal_atrial(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    count = num_beats(findings.rate_bpm, duration_s)
    intervals = 60.0 / findings.rate_bpm * rng.gamma(30.0, 1 / 30.0, count)
    r_s = draw_start_s(rng) + np.cumsum(intervals)
    p_s = p_before(r_s, anatomy.pr_s + rng.normal(0.0, 0.015, count))
    return replace(without_p(r_s), p_s=p_s, p_kinds=rng.integers(0, 3, count).astype(np.int8))


def _atrial_fibrillation(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return irregularly irregular beats.

    Source: RR intervals of AF are close to a gamma distribution with a coefficient of variation of
    0.2-0.3 and no serial order (Goldstein & Barnett, Comput Biomed Res 1967;1:146).
    """
    flags = findings.flags
    count = num_beats(findings.rate_bpm, duration_s)
    variation = rng.uniform(0.20, 0.28)
    intervals = rng.gamma(variation**-2, variation**2, count)
    intervals = np.maximum(intervals / intervals.mean() * 60.0 / findings.rate_bpm, 0.29)
    if "competing_junctional" in flags:
        # The junction fires whenever the atria leave it alone for one of its own cycles.
        intervals = np.minimum(intervals, 1.02 * np.median(intervals))
    begin_s = draw_start_s(rng)
    kinds = np.zeros(count, np.int8)
    early = {"pvc": VENTRICULAR, "aberrancy": ABERRANT}
    for name, kind in early.items():
        if name in flags:
            coupling_s = max(0.3, rng.uniform(0.5, 0.62) * 60.0 / findings.rate_bpm)
            times_s = begin_s + np.cumsum(intervals)
            for index in spots(rng, times_s, duration_s, int(rng.integers(1, 4))):
                # Ashman: a long interval before makes the early beat aberrant.
                intervals[index - 1] = max(intervals[index - 1], 66.0 / findings.rate_bpm)
                intervals[index], kinds[index] = coupling_s, kind
                intervals[index + 1] *= 1.15
    beats = without_p(begin_s + np.cumsum(intervals), fibrillation_hz=float(rng.uniform(5.0, 8.0)))
    return replace(beats, kinds=kinds)


def _atrial_flutter(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    flutter_hz = float(rng.uniform(4.3, 5.4))
    count = num_beats(findings.rate_bpm, duration_s)
    if "two_to_one" in findings.flags:
        ratios = np.full(count, 2.0)
    else:
        ratio = np.clip(np.rint(flutter_hz * 60.0 / findings.rate_bpm), 3, 6)
        ratios = np.full(count, ratio)
        if "variable_av_block" in findings.flags:
            ratios = np.maximum(2, ratio + rng.choice([-1, 0, 1], count, p=[0.35, 0.3, 0.35]))
    return without_p(draw_start_s(rng) + np.cumsum(ratios / flutter_hz), flutter_hz=flutter_hz)


def _undetermined(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return uneven beats without P waves and without fibrillatory waves that could be named."""
    count = num_beats(findings.rate_bpm, duration_s)
    intervals = 60.0 / findings.rate_bpm * np.exp(rng.normal(0.0, rng.uniform(0.06, 0.12), count))
    return without_p(draw_start_s(rng) + np.cumsum(intervals))


def _junctional(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    r_s = regular(rng, findings.rate_bpm, duration_s, 0.01)
    beats = without_p(r_s)
    if "retrograde" in findings.flags:  # The P wave runs backwards, just after the QRS.
        return replace(beats, p_s=r_s + 0.13, p_kinds=np.full(len(r_s), P_RETROGRADE, np.int8))
    return beats


def _supraventricular_tachycardia(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    return without_p(regular(rng, findings.rate_bpm, duration_s, 0.004))


def _ventricular(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return a ventricular rhythm; in tachycardia the atria go on alone (AV dissociation)."""
    r_s = regular(rng, findings.rate_bpm, duration_s, 0.012)
    kinds = np.full(len(r_s), VENTRICULAR, np.int8)
    beats = without_p(r_s, VENTRICULAR)
    if findings.rhythm == "vt":
        p_s = regular(rng, float(rng.uniform(65, 90)), duration_s, 0.015)
        beats = replace(beats, p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8))
    for name, kind in (("sinus_capture", CONDUCTED), ("fusion", FUSION)):
        if name in findings.flags:
            for index in spots(rng, r_s, duration_s, int(rng.integers(1, 3))):
                kinds[index] = kind
                if kind == CONDUCTED:  # A capture beat comes a little early.
                    r_s[index] -= 0.1 * 60.0 / findings.rate_bpm
    return replace(beats, r_s=r_s, kinds=kinds)


def _complete_heart_block(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    kind = CONDUCTED if findings.rate_bpm > 40 else VENTRICULAR  # A junctional escape is faster.
    beats = without_p(regular(rng, findings.rate_bpm, duration_s, 0.01), kind)
    p_s = regular(rng, float(rng.uniform(72, 98)), duration_s, 0.015)
    return replace(beats, p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8))


def _av_dissociation(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return a junctional rhythm a little faster than the sinus node: P waves walk through it."""
    beats = without_p(regular(rng, findings.rate_bpm, duration_s, 0.01))
    p_s = regular(rng, findings.rate_bpm * float(rng.uniform(0.78, 0.9)), duration_s, 0.02)
    return replace(beats, p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8))


def _with_dropped(p_s: Floats, pr_s: Floats, is_conducted: np.ndarray) -> Beats:
    r_s = (p_s - P_PEAK_AFTER_ONSET_S + pr_s + R_AFTER_QRS_ONSET_S)[is_conducted]
    return replace(without_p(r_s), p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8))


def _mobitz_1(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return a Wenckebach rhythm: PR grows, by less each time, until a P wave is not conducted."""
    cycle = int(rng.integers(3, 6))
    p_s = regular(rng, findings.rate_bpm * cycle / (cycle - 1), duration_s, 0.01)
    step = (np.arange(len(p_s)) + int(rng.integers(cycle))) % cycle
    pr_s = anatomy.pr_s + 0.04 + 0.09 * np.sqrt(step)
    return _with_dropped(p_s, pr_s, step < cycle - 1)


def _mobitz_2(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return constant PR with single P waves that are not conducted, or every second (2:1)."""
    cycle = 2 if findings.rhythm == "av_block_2_to_1" else int(rng.integers(3, 5))
    p_s = regular(rng, findings.rate_bpm * cycle / (cycle - 1), duration_s, 0.01)
    step = (np.arange(len(p_s)) + int(rng.integers(cycle))) % cycle
    return _with_dropped(p_s, np.full(len(p_s), anatomy.pr_s + 0.01), step < cycle - 1)


def _paced(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return atrial, ventricular, atrial-sensed, dual (AV) or biventricular pacing."""
    mode, flags = findings.rhythm.removeprefix("paced_"), findings.flags
    senses = mode in ("atrial_sensed", "biventricular")
    spread = 0.02 if senses else 0.0005  # A pacemaker is a clock.
    r_s = regular(rng, findings.rate_bpm, duration_s, spread)
    av_delay_s = float(rng.uniform(0.14, 0.18))
    if mode == "atrial":
        av_delay_s = draw_pr_s(rng, findings, anatomy) + 0.02
    p_s = p_before(r_s, av_delay_s)
    kinds = np.full(len(r_s), CONDUCTED if mode == "atrial" else PACED, np.int8)
    ventricular_s, atrial_s = r_s + VENTRICULAR_SPIKE_S, p_s + ATRIAL_SPIKE_S
    beats = replace(without_p(r_s), kinds=kinds, p_s=p_s, p_kinds=np.zeros(len(p_s), np.int8))
    if mode == "ventricular":
        fibrillating = "atrial_fibrillation" in flags
        beats = replace(
            beats,
            p_s=np.empty(0),
            p_kinds=np.empty(0, np.int8),
            fibrillation_hz=float(rng.uniform(5, 8)) if fibrillating else 0.0,
        )
        spoilt = []
        if "fusion" in flags or "supraventricular_complexes" in flags:
            spoilt = spots(rng, r_s, duration_s, int(rng.integers(2, 4)))
        if "fusion" in flags:
            kinds[spoilt] = FUSION
        elif spoilt:  # The heart is first: a narrow early beat, and no spike.
            kinds[spoilt] = CONDUCTED
            r_s[spoilt] -= 0.2 * 60.0 / findings.rate_bpm
            ventricular_s = np.delete(ventricular_s, spoilt)
        return replace(beats, spikes_s=ventricular_s)
    if mode == "biventricular":  # Left and right a few milliseconds apart.
        kinds[:] = PACED_BOTH
        return replace(beats, spikes_s=np.concatenate([ventricular_s, ventricular_s + 0.016]))
    spikes_s = {
        "atrial": atrial_s,
        "atrial_sensed": ventricular_s,
        "dual": np.concatenate([atrial_s, ventricular_s]),
    }[mode]
    return replace(beats, spikes_s=spikes_s)


def _pacing_failure(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return sinus rhythm and the spikes of a pacemaker that neither captures nor senses."""
    beats = sinus(rng, findings, duration_s, anatomy)
    return replace(beats, spikes_s=regular(rng, float(rng.uniform(60, 75)), duration_s, 0.0))


RhythmModel = Callable[[np.random.Generator, Findings, float, Anatomy], Beats]

RHYTHMS: dict[str, RhythmModel] = {
    "sinus": sinus,
    "ectopic_atrial": _ectopic_atrial,
    "multifocal_atrial": _multifocal_atrial,
    "atrial_fibrillation": _atrial_fibrillation,
    "atrial_flutter": _atrial_flutter,
    "undetermined": _undetermined,
    "junctional": _junctional,
    "svt": _supraventricular_tachycardia,
    "vt": _ventricular,
    "wide_qrs_tachycardia": _ventricular,
    "wide_qrs": _ventricular,
    "idioventricular": _ventricular,
    "complete_heart_block": _complete_heart_block,
    "av_dissociation": _av_dissociation,
    "mobitz_1": _mobitz_1,
    "mobitz_2": _mobitz_2,
    "av_block_2_to_1": _mobitz_2,
    "paced_atrial": _paced,
    "paced_ventricular": _paced,
    "paced_atrial_sensed": _paced,
    "paced_dual": _paced,
    "paced_biventricular": _paced,
    "pacing_failure": _pacing_failure,
}

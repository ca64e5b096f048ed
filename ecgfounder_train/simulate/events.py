"""What a rhythm is made of: findings, beats on a time axis, and the pieces rhythms share."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.simulate.anatomy import Anatomy

Floats = NDArray[np.float64]
Ints = NDArray[np.int8]

CONDUCTED, VENTRICULAR, PACED, FUSION, ABERRANT, PACED_BOTH = range(6)
"""Kinds of QRS: over the His bundle, from the ventricle, from an electrode in the right ventricle,
half conducted and half ventricular, conducted with a tired right bundle, paced from both sides."""
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

    `fibrillation_hz` and `flutter_hz` are rates of atrial waves that go on all the time.
    """

    r_s: Floats
    kinds: Ints
    qt_s: Floats
    p_s: Floats
    p_kinds: Ints
    spikes_s: Floats = field(default_factory=lambda: np.empty(0))
    fibrillation_hz: float = 0.0
    flutter_hz: float = 0.0


def num_beats(rate_bpm: float, duration_s: float) -> int:
    """Return enough beats for the recording, what comes before it, and some more."""
    return int((duration_s + 2 * LEAD_IN_S) * rate_bpm / 60.0 * 1.15) + 4


def draw_start_s(rng: np.random.Generator) -> float:
    """Return where the first interval begins."""
    return float(-LEAD_IN_S + rng.uniform(0.0, 1.0))


def sinus_intervals(
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


def respiratory_amplitude(rng: np.random.Generator, findings: Findings) -> float:
    """Return the relative swing of RR with breathing."""
    if "marked_sinus_arrhythmia" in findings.flags:
        return float(rng.uniform(0.2, 0.28))
    if "sinus_arrhythmia" in findings.flags:
        return float(rng.uniform(0.10, 0.15))
    # Fast hearts vary less (vagal tone is withdrawn).
    return float(rng.uniform(0.008, 0.03) * min(1.0, 70.0 / findings.rate_bpm))


def spots(rng: np.random.Generator, times_s: Floats, duration_s: float, wanted: int) -> list[int]:
    """Return up to `wanted` beats well inside the recording, not next to one another."""
    inside = np.flatnonzero((times_s > 0.8) & (times_s < duration_s - 1.2))
    chosen: list[int] = []
    for index in rng.permutation(inside).tolist():
        if all(abs(index - other) > 2 for other in chosen):
            chosen.append(index)
        if len(chosen) == wanted:
            break
    return chosen


def draw_pr_s(rng: np.random.Generator, findings: Findings, anatomy: Anatomy) -> float:
    """Return the PR interval of this ECG."""
    if "first_degree_av_block" in findings.flags:
        return float(rng.uniform(0.22, 0.32))
    if "short_pr" in findings.flags or "wpw" in findings.flags:
        return float(rng.uniform(0.085, 0.108))
    if "prolonged_av" in findings.flags:
        return float(rng.uniform(0.23, 0.30))
    return anatomy.pr_s - 0.0004 * (findings.rate_bpm - 70.0)


def p_before(r_s: Floats, pr_s: Floats | float) -> Floats:
    """Return the peaks of the P waves that are conducted to these beats."""
    return r_s - R_AFTER_QRS_ONSET_S - pr_s + P_PEAK_AFTER_ONSET_S


def without_p(
    r_s: Floats, kind: int = CONDUCTED, fibrillation_hz: float = 0.0, flutter_hz: float = 0.0
) -> Beats:
    """Return beats of one kind with no P wave before them."""
    return Beats(
        r_s=r_s,
        kinds=np.full(len(r_s), kind, np.int8),
        qt_s=np.zeros_like(r_s),
        p_s=np.empty(0),
        p_kinds=np.empty(0, np.int8),
        fibrillation_hz=fibrillation_hz,
        flutter_hz=flutter_hz,
    )


def regular(rng: np.random.Generator, rate_bpm: float, duration_s: float, spread: float) -> Floats:
    """Return evenly spaced beats; `spread` is the relative standard deviation of RR."""
    count = num_beats(rate_bpm, duration_s)
    intervals = 60.0 / rate_bpm * (1.0 + spread * rng.standard_normal(count))
    return draw_start_s(rng) + np.cumsum(intervals)

"""Sinus rhythm and what disturbs it beat by beat: ectopy, pauses, blocks, escapes, paced beats.

A disturbance is one function on a `_Line` of beats, registered in `_DISTURBANCES`.

Source: couplings, pauses (compensatory or not), SA Wenckebach and escape intervals as described in
Surawicz & Knilans, Chou's Electrocardiography in Clinical Practice, 6th ed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.events import (
    ABERRANT,
    CONDUCTED,
    FUSION,
    P_ECTOPIC,
    P_PEAK_AFTER_ONSET_S,
    PACED,
    Beats,
    Findings,
    Floats,
    Ints,
    draw_pr_s,
    draw_start_s,
    num_beats,
    p_before,
    respiratory_amplitude,
    sinus_intervals,
    spots,
)
from ecgfounder_train.simulate.events import VENTRICULAR as FROM_VENTRICLE

VENTRICULAR_SPIKE_S = -0.068
"""Time of the pacing spike before the R reference of the beat it triggers."""
ATRIAL_SPIKE_S = -P_PEAK_AFTER_ONSET_S - 0.006
"""Time of the pacing spike before the peak of the P wave it triggers."""


@dataclass
class _Line:
    """Beats that may still be moved: `intervals[i]` ends at beat `i`."""

    rng: np.random.Generator
    duration_s: float
    begin_s: float
    intervals: Floats
    kinds: Ints
    p_kinds: Ints
    has_p: np.ndarray
    touched: set[int] = field(default_factory=set)
    extra_p: list[tuple[int, float]] = field(default_factory=list)
    ventricular_spikes: list[int] = field(default_factory=list)
    atrial_spikes: list[int] = field(default_factory=list)

    def free(self, wanted: int) -> list[int]:
        """Return up to `wanted` beats away from those that are already something."""
        times_s = self.begin_s + np.cumsum(self.intervals)
        chosen: list[int] = []
        for index in spots(self.rng, times_s, self.duration_s, wanted + len(self.touched)):
            if self.touched.isdisjoint(range(index - 1, index + 3)) and len(chosen) < wanted:
                chosen.append(index)
                self.touched |= {index, index + 1}
        return chosen

    def some(self, low: int = 1, high: int = 3) -> list[int]:
        return self.free(int(self.rng.integers(low, high + 1)))

    def early(self, index: int, coupling: float, kind: int) -> None:
        """Make a beat premature; the pause after it compensates in full if it is ventricular."""
        cycle_s = self.intervals[index]
        self.kinds[index] = kind
        self.intervals[index] = coupling * cycle_s
        if kind in (FROM_VENTRICLE, FUSION):
            self.intervals[index + 1] = (2.0 - coupling) * cycle_s
            self.has_p[index] = False
        else:  # The sinus node is reset.
            self.intervals[index + 1] *= 1.08
            self.p_kinds[index] = P_ECTOPIC


def _pvc(line: _Line) -> None:
    coupling = line.rng.uniform(0.55, 0.7)  # A focus couples at a fixed interval.
    for index in line.some():
        line.early(index, coupling, FROM_VENTRICLE)


def _bigeminy(line: _Line) -> None:
    coupling = line.rng.uniform(0.55, 0.68)
    for index in range(2, len(line.intervals) - 1, 2):
        line.early(index, coupling, FROM_VENTRICLE)


def _pvc_fusion(line: _Line) -> None:
    _pvc(line)
    for index in line.some(1, 2):  # So late that the sinus beat meets it half way.
        line.early(index, line.rng.uniform(0.90, 0.95), FUSION)


def _pac(line: _Line) -> None:
    coupling = line.rng.uniform(0.58, 0.72)
    for index in line.some():
        line.early(index, coupling, CONDUCTED)


def _aberrancy(line: _Line) -> None:
    for index in line.some():
        line.early(index, line.rng.uniform(0.52, 0.62), ABERRANT)


def _ectopic_complexes(line: _Line) -> None:
    for index, kind in zip(line.free(3), (FROM_VENTRICLE, CONDUCTED, FROM_VENTRICLE), strict=False):
        line.early(index, line.rng.uniform(0.56, 0.7), kind)


def _blocked_pac(line: _Line) -> None:
    for index in line.some(1, 2):
        line.extra_p.append((index - 1, 0.42 * line.intervals[index]))
        line.intervals[index] *= line.rng.uniform(1.45, 1.65)


def _sinus_pause(line: _Line) -> None:
    for index in line.free(1):
        line.intervals[index] = max(line.rng.uniform(2.2, 3.2), 1.9 * line.intervals[index])


def _sa_block_1(line: _Line) -> None:
    """Lengthen SA conduction by less each time: PP shortens, then comes a gap of less than two."""
    group = int(line.rng.integers(4, 6))
    factors = np.linspace(1.10, 0.94, group)
    factors[0] = 1.68
    line.intervals *= np.resize(factors, len(line.intervals))


def _sa_block_2(line: _Line) -> None:
    for index in line.some(1, 2):
        line.intervals[index] *= 2.0


def _irregular(line: _Line) -> None:
    line.intervals *= np.exp(line.rng.normal(0.0, 0.15, len(line.intervals)))


def _escape(kind: int) -> Callable[[_Line], None]:
    def disturb(line: _Line) -> None:
        for index in line.some(1, 2):
            line.intervals[index] = max(line.rng.uniform(1.35, 1.7), 1.45 * line.intervals[index])
            line.kinds[index], line.has_p[index] = kind, False

    return disturb


def _paced_complexes(atrial: bool, ventricular: bool) -> Callable[[_Line], None]:
    def disturb(line: _Line) -> None:
        # The pacemaker waits, then fills in: each gap ends after the same escape interval.
        escape_s = max(line.rng.uniform(1.0, 1.15), 1.15 * float(line.intervals.mean()))
        for index in line.some(3, 4):
            line.intervals[index] = escape_s
            line.has_p[index] = atrial
            if atrial:
                line.atrial_spikes.append(index)
            if ventricular:
                line.kinds[index] = PACED
                line.ventricular_spikes.append(index)

    return disturb


_DISTURBANCES: dict[str, Callable[[_Line], None]] = {
    "irregular_rhythm": _irregular,
    "sa_block_1": _sa_block_1,
    "bigeminy": _bigeminy,
    "pvc": _pvc,
    "pvc_fusion": _pvc_fusion,
    "pac": _pac,
    "aberrancy": _aberrancy,
    "ectopic_complexes": _ectopic_complexes,
    "blocked_pac": _blocked_pac,
    "sinus_pause": _sinus_pause,
    "sa_block_2": _sa_block_2,
    "ventricular_escape": _escape(FROM_VENTRICLE),
    "junctional_escape": _escape(CONDUCTED),
    "v_paced_complexes": _paced_complexes(atrial=False, ventricular=True),
    "a_paced_complexes": _paced_complexes(atrial=True, ventricular=False),
    "av_paced_complexes": _paced_complexes(atrial=True, ventricular=True),
    "demand_pacing": _paced_complexes(atrial=False, ventricular=True),
}
DISTURBANCES = tuple(_DISTURBANCES)
"""Names of findings that disturb sinus rhythm."""


def sinus(
    rng: np.random.Generator, findings: Findings, duration_s: float, anatomy: Anatomy
) -> Beats:
    """Return sinus rhythm with whatever disturbs it."""
    count = num_beats(findings.rate_bpm, duration_s)
    line = _Line(
        rng=rng,
        duration_s=duration_s,
        begin_s=draw_start_s(rng),
        intervals=sinus_intervals(
            rng, findings.rate_bpm, count, respiratory_amplitude(rng, findings)
        ),
        kinds=np.zeros(count, np.int8),
        p_kinds=np.zeros(count, np.int8),
        has_p=np.ones(count, bool),
    )
    for name, disturb in _DISTURBANCES.items():
        if name in findings.flags:
            disturb(line)
    r_s = line.begin_s + np.cumsum(line.intervals)
    p_s = p_before(r_s, draw_pr_s(rng, findings, anatomy))
    extra_s = np.array([r_s[index] + after_s for index, after_s in line.extra_p])
    return Beats(
        r_s=r_s,
        kinds=line.kinds,
        qt_s=np.zeros_like(r_s),
        p_s=np.concatenate([p_s[line.has_p], extra_s]),
        p_kinds=np.concatenate(
            [line.p_kinds[line.has_p], np.full(len(extra_s), P_ECTOPIC, np.int8)]
        ),
        spikes_s=spikes(r_s, p_s, line.ventricular_spikes, line.atrial_spikes),
    )


def spikes(r_s: Floats, p_s: Floats, ventricular: Sequence[int], atrial: Sequence[int]) -> Floats:
    """Return the times of the spikes before these beats and P waves."""
    return np.concatenate(
        [r_s[list(ventricular)] + VENTRICULAR_SPIKE_S, p_s[list(atrial)] + ATRIAL_SPIKE_S]
    )

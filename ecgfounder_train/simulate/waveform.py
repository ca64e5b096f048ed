"""What twelve leads show of a rhythm: the beats' dipole over time, projected, with noise.

All leads are projections of one dipole, so they agree with one another as real leads do. What a
beat looks like is `morphology`, when it comes is `rhythm`, what the cables add is `noise`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.events import (
    ABERRANT,
    CONDUCTED,
    FUSION,
    P_ECTOPIC,
    P_SINUS,
    PACED,
    PACED_BOTH,
    R_AFTER_QRS_ONSET_S,
    VENTRICULAR,
    Beats,
    Findings,
)
from ecgfounder_train.simulate.morphology import (
    FLAGS,
    PACED_BOTH_QRS,
    PACED_QRS,
    VENTRICULAR_QRS,
    Morphology,
    aberrant,
    conducted,
    from_ventricle,
    fusion,
    p_components,
    qrs_leads,
    twelve_leads,
)
from ecgfounder_train.simulate.noise import reversed_leads, with_noise
from ecgfounder_train.simulate.rhythm import RHYTHMS, make_beats

Floats = NDArray[np.float64]
Signal = NDArray[np.float32]


@dataclass(frozen=True)
class Truth:
    """What the generator meant: intervals of a conducted beat, in seconds, rate and axis.

    NaN where the rhythm has none: PR without conducted sinus P waves.
    """

    rate_bpm: float
    pr_s: float
    qrs_s: float
    qt_s: float
    axis_deg: float


def simulate_ecg(
    seed: int | np.random.Generator,
    findings: Findings | Iterable[str] = (),
    fs: float = 500.0,
    duration_s: float = 10.0,
    anatomy: Anatomy | None = None,
    noise: float = 1.0,
    mains_hz: float = 60.0,
) -> Signal:
    """Return one ECG in mV, leads I, II, III, aVR, aVL, aVF, V1-V6.

    Args:
        seed: Same seed and arguments, same signal.
        findings: `Findings`, or names of `FLAGS` in sinus rhythm.
        fs: Samples per second.
        duration_s: Length.
        anatomy: The patient; drawn from the seed when left out.
        noise: Scale of all noise; 0 gives the heart alone.
        mains_hz: 50 or 60, the hum of the place.

    Shape:
        (12, duration_s * fs), float32, mV.

    Raises:
        UserError: An unknown rhythm or finding.
    """
    return _simulate(seed, findings, fs, duration_s, anatomy, noise, mains_hz)[0]


def simulate_with_truth(
    seed: int | np.random.Generator,
    findings: Findings | Iterable[str] = (),
    fs: float = 500.0,
    duration_s: float = 10.0,
    anatomy: Anatomy | None = None,
    noise: float = 1.0,
) -> tuple[Signal, Truth]:
    """Return what `simulate_ecg` returns, and the intervals that were meant."""
    signal, beats, shapes, p_shapes, anatomy = _simulate(
        seed, findings, fs, duration_s, anatomy, noise, 60.0
    )
    return signal, _truth(beats, shapes, p_shapes, anatomy, duration_s)


def _simulate(
    seed: int | np.random.Generator,
    findings: Findings | Iterable[str],
    fs: float,
    duration_s: float,
    anatomy: Anatomy | None,
    noise: float,
    mains_hz: float,
) -> tuple[Signal, Beats, dict[int, Morphology], dict[int, Floats], Anatomy]:
    if not isinstance(findings, Findings):
        findings = Findings(flags=frozenset(findings))
    check_findings(findings)
    rng = np.random.default_rng(seed)
    anatomy = anatomy or Anatomy.sample(rng)
    num_samples = round(duration_s * fs)
    beats = make_beats(rng, findings, duration_s, anatomy)
    shapes = _shapes(rng, beats, findings, anatomy)
    p_shapes = {
        kind: p_components(kind, findings, anatomy) for kind in np.unique(beats.p_kinds).tolist()
    }
    dipole = _render(
        rng, beats, shapes, p_shapes, "pericarditis" in findings.flags, fs, num_samples
    )
    leads: Signal = anatomy.lead_field.astype(np.float32) @ dipole
    if noise > 0:
        leads = with_noise(rng, leads, fs, noise, findings.flags, mains_hz)
    leads = reversed_leads(leads, findings.flags)
    return twelve_leads(leads).astype(np.float32, copy=False), beats, shapes, p_shapes, anatomy


def _shapes(
    rng: np.random.Generator, beats: Beats, findings: Findings, anatomy: Anatomy
) -> dict[int, Morphology]:
    """Return the shape of every kind of beat in the recording."""
    kinds = set(np.unique(beats.kinds).tolist())
    shapes: dict[int, Morphology] = {}
    if kinds & {CONDUCTED, FUSION, ABERRANT}:
        shapes[CONDUCTED] = conducted(rng, findings, anatomy)
    ectopic = PACED_QRS if PACED in kinds else VENTRICULAR_QRS[anatomy.ectopic_focus]
    if kinds & {VENTRICULAR, FUSION}:
        shapes[VENTRICULAR] = from_ventricle(ectopic, anatomy.voltage)
    if PACED in kinds:
        shapes[PACED] = from_ventricle(PACED_QRS, anatomy.voltage)
    if PACED_BOTH in kinds:
        shapes[PACED_BOTH] = from_ventricle(PACED_BOTH_QRS, anatomy.voltage)
    if FUSION in kinds:
        shapes[FUSION] = fusion(shapes[CONDUCTED], shapes[VENTRICULAR])
    if ABERRANT in kinds:
        shapes[ABERRANT] = aberrant(shapes[CONDUCTED], anatomy.voltage)
    return shapes


def _truth(
    beats: Beats,
    shapes: dict[int, Morphology],
    p_shapes: dict[int, Floats],
    anatomy: Anatomy,
    duration_s: float,
) -> Truth:
    """Return intervals read off the noise-free waves: from where a wave first shows in any lead.

    Source: 12SL measures intervals over all leads, from the earliest onset to the latest offset.
    """
    kind = int(np.bincount(beats.kinds).argmax())
    shape = shapes[kind]
    inside = (beats.r_s > 0) & (beats.r_s < duration_s) & (beats.kinds == kind)
    leads = qrs_leads(shape.qrs, anatomy.lead_field, step_s=0.001)
    begin_s, end_s = _extent_s(leads)
    all_inside = beats.r_s[(beats.r_s > 0) & (beats.r_s < duration_s)]
    pr_s = np.nan
    if P_SINUS in p_shapes or P_ECTOPIC in p_shapes:
        p_kind = P_SINUS if P_SINUS in p_shapes else P_ECTOPIC
        p_begin_s, _ = _extent_s(qrs_leads(p_shapes[p_kind], anatomy.lead_field, step_s=0.001))
        p_s = beats.p_s[beats.p_kinds == p_kind]
        gaps = beats.r_s[inside][:, None] - p_s
        nearest = np.where(gaps > 0.03, gaps, np.inf).min(axis=1)
        pr_s = float(np.median(nearest)) - p_begin_s + begin_s
    area_1, area_avf = leads[0].sum(), leads[5].sum() * 2 / np.sqrt(3)
    return Truth(
        rate_bpm=float(60.0 / np.diff(all_inside).mean()),
        pr_s=float(pr_s),
        qrs_s=end_s - begin_s,
        qt_s=float(np.median(beats.qt_s[inside])) - R_AFTER_QRS_ONSET_S - begin_s,
        axis_deg=float(np.degrees(np.arctan2(area_avf, area_1))),
    )


def _extent_s(leads: Floats) -> tuple[float, float]:
    """Return where a wave begins and ends around its reference: 4 % of its largest lead."""
    shown = np.flatnonzero(np.abs(leads).max(axis=0) > 0.04 * np.abs(leads).max())
    return float(shown[0]) * 0.001 - 0.12, float(shown[-1]) * 0.001 - 0.12


def check_findings(findings: Findings) -> None:
    """Raise a UserError for rhythms and flags that no code draws."""
    if findings.rhythm not in RHYTHMS:
        raise UserError(
            f"Unknown rhythm {findings.rhythm!r}." + did_you_mean(findings.rhythm, RHYTHMS)
        )
    for flag in findings.flags - FLAGS:
        raise UserError(f"Unknown finding {flag!r}." + did_you_mean(flag, FLAGS))


def _render(
    rng: np.random.Generator,
    beats: Beats,
    shapes: dict[int, Morphology],
    p_shapes: dict[int, Floats],
    has_pericarditis: bool,
    fs: float,
    num_samples: int,
) -> Signal:
    """Return the dipole over time. Shape: (3, num_samples), mV."""
    margin = round(1.2 * fs)
    canvas = np.zeros((num_samples + 2 * margin, 3), np.float32)
    # Breathing moves the heart: the QRS grows and shrinks by a few per cent.
    breathing_hz, phase = rng.uniform(0.18, 0.32), rng.uniform(0, 2 * np.pi)
    for kind in np.unique(beats.kinds).tolist():
        shape = shapes[kind]
        chosen = beats.kinds == kind
        r_s, qt_s = beats.r_s[chosen], beats.qt_s[chosen]
        swing = 1.0 + 0.035 * np.sin(2 * np.pi * breathing_hz * r_s + phase)
        _add(canvas, margin, fs, r_s, shape.qrs, swing, (-0.13, 0.14))
        _add_repolarisation(canvas, margin, fs, r_s, qt_s, shape, swing)
    for kind in np.unique(beats.p_kinds).tolist():
        p_s = beats.p_s[beats.p_kinds == kind]
        components = p_shapes[kind]
        _add(canvas, margin, fs, p_s, components, np.ones(len(p_s)), (-0.09, 0.11))
        if kind == P_SINUS and has_pericarditis:
            pr_depression = np.array([[0.075, 0.02, 0.02, -0.03, -0.035, 0.01]])
            _add(canvas, margin, fs, p_s, pr_depression, np.ones(len(p_s)), (0.0, 0.15))
    dipole = np.ascontiguousarray(canvas[margin : margin + num_samples].T)
    if beats.fibrillation_hz:
        dipole += _fibrillation(rng, beats.fibrillation_hz, fs, num_samples)
    if beats.flutter_hz:
        dipole += _flutter(rng, beats, fs, num_samples)
    _add_spikes(rng, dipole, beats.spikes_s, fs)
    return dipole


def _window(
    times_s: Floats, fs: float, margin: int, length: int, span_s: tuple[float, float]
) -> tuple[NDArray[np.int64], Signal]:
    """Return first canvas rows and the time from each event, for events that fit the canvas."""
    first = np.floor((times_s + span_s[0]) * fs).astype(np.int64)
    width = int((span_s[1] - span_s[0]) * fs) + 1
    fits = (first + margin >= 0) & (first + margin + width <= length)
    offsets = (first[:, None] + np.arange(width)) / fs - times_s[:, None]
    return np.where(fits, first + margin, -1), offsets.astype(np.float32)


def _add(
    canvas: Signal,
    margin: int,
    fs: float,
    times_s: Floats,
    components: Floats,
    gains: Floats,
    span_s: tuple[float, float],
) -> None:
    """Add a sum of two-sided Gaussians at every time."""
    rows, offsets = _window(times_s, fs, margin, len(canvas), span_s)
    table = components.astype(np.float32)
    distance = offsets[:, :, None] - table[:, 0]
    sigma = np.where(distance < 0, table[:, 1], table[:, 2])
    bumps = np.exp(-0.5 * (distance / sigma) ** 2)
    _scatter(canvas, rows, (bumps @ table[:, 3:]) * gains[:, None, None].astype(np.float32))


def _add_repolarisation(
    canvas: Signal,
    margin: int,
    fs: float,
    r_s: Floats,
    qt_s: Floats,
    shape: Morphology,
    gains: Floats,
) -> None:
    """Add the ST plateau and the T wave, which rises slowly and falls fast and ends at the QT."""
    rows, offsets = _window(r_s, fs, margin, len(canvas), (0.0, 0.8))
    qt = qt_s.astype(np.float32)[:, None]
    falling, rising = 0.095 * qt, 0.145 * qt
    peak = qt - np.float32(R_AFTER_QRS_ONSET_S) - 2.2 * falling
    distance = offsets - peak
    t_wave = np.exp(-0.5 * (distance / np.where(distance < 0, rising, falling)) ** 2)
    begin = np.float32(shape.st_begin_s)
    plateau = 0.5 * (np.tanh((offsets - begin) / 0.012) - np.tanh((offsets - peak) / 0.05))
    waves = t_wave[:, :, None] * shape.t.astype(np.float32)
    waves += plateau[:, :, None] * shape.st.astype(np.float32)
    _scatter(canvas, rows, waves * gains[:, None, None].astype(np.float32))


def _scatter(canvas: Signal, rows: NDArray[np.int64], waves: Signal) -> None:
    width = waves.shape[1]
    for row, wave in zip(rows.tolist(), waves, strict=True):
        if row >= 0:
            canvas[row : row + width] += wave


def _fibrillation(rng: np.random.Generator, rate_hz: float, fs: float, num_samples: int) -> Signal:
    """Return fibrillatory waves: a sawtooth-like tone that wanders in rate and size, largest in V1.

    Source: the f-wave model of Stridh & Sörnmo, IEEE Trans Biomed Eng 2001;48:105.
    """
    time_s = np.arange(num_samples) / fs
    phases = rng.uniform(0, 2 * np.pi, 6)
    wander = 0.9 * np.sin(2 * np.pi * 0.35 * time_s + phases[0])
    wander += 0.8 * np.sin(2 * np.pi * 0.8 * time_s + phases[1])
    phase = 2 * np.pi * rate_hz * time_s + wander
    size = 1.0 + 0.35 * np.sin(2 * np.pi * 0.23 * time_s + phases[2])
    size += 0.25 * np.sin(2 * np.pi * 0.9 * time_s + phases[3])
    front = np.sin(phase + phases[4]) + 0.35 * np.sin(2 * phase + phases[5])
    side = np.sin(phase + phases[4] + 1.1) + 0.3 * np.sin(2 * phase)
    amplitude = rng.uniform(0.035, 0.085)
    x, y, z = -0.25 * front, 0.55 * side, -0.8 * front
    waves: Signal = (amplitude * size * np.stack([x, y, z])).astype(np.float32)
    return waves


def _flutter(rng: np.random.Generator, beats: Beats, fs: float, num_samples: int) -> Signal:
    """Return the sawtooth of typical flutter: negative in the inferior leads, upright in V1."""
    time_s = np.arange(num_samples) / fs
    # Locked to the QRS: a fixed conduction ratio has a fixed phase.
    cycle = ((time_s - beats.r_s[0]) * beats.flutter_hz + rng.uniform()) % 1.0
    tooth = np.where(cycle < 0.7, cycle / 0.7, (1.0 - cycle) / 0.3) - 0.5
    amplitude = rng.uniform(0.20, 0.34)
    waves = amplitude * np.stack([-0.05 * tooth, -1.0 * tooth, -0.35 * tooth])
    result: Signal = waves.astype(np.float32)
    return result


def _add_spikes(rng: np.random.Generator, dipole: Signal, spikes_s: Floats, fs: float) -> None:
    """Add pacing spikes of 2 ms, drawn with a short recharge tail."""
    direction = np.array([0.35, 1.0, 0.5]) * rng.uniform(0.5, 1.3) * rng.choice([1.0, -1.0])
    tail = np.array([1.0, -0.18, -0.08]) if fs >= 400 else np.array([0.9, -0.1])
    for start in np.rint(spikes_s * fs).astype(int).tolist():
        if 0 <= start <= dipole.shape[1] - len(tail):
            dipole[:, start : start + len(tail)] += np.outer(direction, tail).astype(np.float32)

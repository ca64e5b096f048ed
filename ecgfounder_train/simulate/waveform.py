"""What twelve leads show of a rhythm: a moving dipole made of Gaussians, projected, with noise.

The heart is one dipole in Frank's axes (X left, Y feet, Z back). P, QRS and T are sums of Gaussians
in time, each with its own direction; disease changes them (a block adds a late slow component, an
infarct takes away what the dead wall would have added). All leads are projections of that one
dipole, so they agree with one another as real leads do.

Source: Gaussian wave components as in McSharry et al., IEEE Trans Biomed Eng 2003;50:289, moved to
the dipole by Sameni et al., EURASIP J Adv Signal Process 2007:043407.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.rhythm import (
    CONDUCTED,
    P_ECTOPIC,
    P_RETROGRADE,
    P_SINUS,
    PACED,
    R_AFTER_QRS_ONSET_S,
    RHYTHMS,
    VENTRICULAR,
    Beats,
    Findings,
    make_beats,
)

Floats = NDArray[np.float64]
Signal = NDArray[np.float32]

INFARCTS = (
    "septal_infarct",
    "anterior_infarct",
    "anteroseptal_infarct",
    "lateral_infarct",
    "anterolateral_infarct",
    "inferior_infarct",
    "inferoposterior_infarct",
    "posterior_infarct",
)
INJURIES = (
    "anterior_injury",
    "inferior_injury",
    "lateral_injury",
    "anterolateral_injury",
    "inferolateral_injury",
)
FLAGS = frozenset(
    {
        *INFARCTS,
        *INJURIES,
        # Conduction
        *("lbbb", "ilbbb", "rbbb", "irbbb", "rsr", "ivcd", "lafb", "lpfb", "rbbb_lafb", "wpw"),
        # Axis, size, voltage
        *("left_axis", "leftward_axis", "right_axis", "rightward_axis", "superior_axis"),
        *("lvh", "lvh_voltage", "lvh_strain", "rvh", "lae", "rae", "low_voltage", "pulmonary"),
        # Repolarisation
        *("t_abnormal", "st_abnormal", "st_t_abnormal", "long_qt", "pericarditis"),
        *("early_repolarization", "digitalis"),
        # Rhythm modifiers (see rhythm.py)
        *("pvc", "bigeminy", "pac", "sinus_arrhythmia", "marked_sinus_arrhythmia", "sinus_pause"),
        *("first_degree_av_block", "short_pr", "variable_av_block", "two_to_one"),
        *("atrial_fibrillation",),
        # Recording
        *("arm_leads_reversed", "poor_quality", "weakened"),
    }
)

# Columns: centre (s from the R reference), sigma before and after the centre (s), X, Y, Z (mV).
_NORMAL_QRS = np.array(
    [
        [-0.027, 0.0075, 0.0075, -0.13, -0.05, -0.26],  # septum: right and forwards
        [-0.007, 0.0095, 0.0095, 0.72, 0.62, -0.25],  # apex and front wall
        [0.008, 0.0095, 0.0105, 0.75, 0.60, 0.95],  # free left wall: left and back
        [0.029, 0.0085, 0.0095, -0.14, -0.22, 0.22],  # base, last
    ]
)
_LBBB_QRS = np.array(
    [
        [-0.022, 0.012, 0.014, 0.42, 0.20, -0.02],
        [0.005, 0.017, 0.018, 0.72, 0.28, 0.95],
        [0.040, 0.018, 0.019, 0.85, 0.12, 0.90],
    ]
)
_VENTRICULAR_QRS = (
    # By origin: right outflow tract, left free wall, right apex, left apex.
    np.array([[-0.015, 0.02, 0.022, 0.5, 1.2, 0.7], [0.035, 0.024, 0.026, 0.4, 1.1, 0.9]]),
    np.array([[-0.015, 0.02, 0.022, -0.9, 0.4, -1.1], [0.035, 0.024, 0.026, -1.0, 0.5, -0.7]]),
    np.array([[-0.015, 0.02, 0.022, 0.8, -0.9, 0.6], [0.035, 0.024, 0.026, 0.7, -1.0, 0.9]]),
    np.array([[-0.015, 0.02, 0.022, -0.5, -1.1, -0.8], [0.035, 0.024, 0.026, -0.8, -1.0, -0.5]]),
)
_PACED_QRS = np.array(
    [[-0.020, 0.018, 0.022, 0.45, -0.75, 0.55], [0.030, 0.022, 0.026, 0.55, -0.95, 0.95]]
)
_P_WAVES = {
    # Right atrium first (feet, a little forwards), then the left (left, back).
    P_SINUS: np.array(
        [[-0.018, 0.016, 0.017, 0.035, 0.085, -0.045], [0.014, 0.017, 0.017, 0.06, 0.065, 0.045]]
    ),
    P_ECTOPIC: np.array([[0.0, 0.018, 0.018, 0.03, -0.10, 0.02]]),
    P_RETROGRADE: np.array([[0.0, 0.016, 0.016, -0.01, -0.12, -0.02]]),
}
_LVH = frozenset({"lvh", "lvh_voltage", "lvh_strain"})
_NORMAL_T = np.array([0.29, 0.23, -0.22])

# What is added to the first 40 ms when a wall is dead: the direction away from that wall.
_Q_VECTORS = {
    "septal_infarct": [[-0.018, 0.012, 0.013, 0.0, 0.05, 0.62]],
    "anteroseptal_infarct": [[-0.014, 0.012, 0.014, -0.30, 0.0, 0.95]],
    "anterior_infarct": [[-0.012, 0.012, 0.014, -0.62, -0.05, 0.62]],
    "lateral_infarct": [[-0.020, 0.012, 0.012, -0.85, 0.12, -0.05]],
    "anterolateral_infarct": [[-0.014, 0.013, 0.014, -1.15, 0.05, 0.60]],
    "inferior_infarct": [[-0.023, 0.011, 0.012, 0.05, -0.72, 0.0]],
    "inferoposterior_infarct": [
        [-0.023, 0.011, 0.012, 0.0, -0.72, 0.0],
        [0.008, 0.013, 0.015, 0.0, 0.0, -1.20],
    ],
    "posterior_infarct": [[0.008, 0.013, 0.015, 0.0, 0.05, -1.35]],
}
_INJURY_VECTORS = {
    "anterior_injury": [0.10, 0.0, -0.26],
    "inferior_injury": [-0.06, 0.30, 0.04],
    "lateral_injury": [0.30, -0.06, 0.04],
    "anterolateral_injury": [0.26, -0.02, -0.20],
    "inferolateral_injury": [0.20, 0.24, 0.04],
}
_AXES_DEG = {
    "left_axis": (-75.0, -35.0),
    "leftward_axis": (-29.0, -15.0),
    "lafb": (-75.0, -47.0),
    "rbbb_lafb": (-75.0, -47.0),
    "rightward_axis": (91.0, 100.0),
    "right_axis": (102.0, 140.0),
    "lpfb": (105.0, 140.0),
    "rvh": (100.0, 135.0),
    "pulmonary": (85.0, 105.0),
    "superior_axis": (-150.0, -110.0),
}


@dataclass(frozen=True)
class Morphology:
    """The shape of one kind of beat: QRS components, plateau of the ST segment, T vector."""

    qrs: Floats
    st: Floats
    t: Floats
    st_begin_s: float


def simulate_ecg(
    seed: int | np.random.Generator,
    findings: Findings | Iterable[str] = (),
    fs: float = 500.0,
    duration_s: float = 10.0,
    anatomy: Anatomy | None = None,
    noise: float = 1.0,
) -> Signal:
    """Return one ECG in mV, leads I, II, III, aVR, aVL, aVF, V1-V6.

    Args:
        seed: Same seed and arguments, same signal.
        findings: `Findings`, or names of `FLAGS` in sinus rhythm.
        fs: Samples per second.
        duration_s: Length.
        anatomy: The patient; drawn from the seed when left out.
        noise: Scale of all noise; 0 gives the heart alone.

    Shape:
        (12, duration_s * fs), float32, mV.

    Raises:
        UserError: An unknown rhythm or finding.
    """
    if not isinstance(findings, Findings):
        findings = Findings(flags=frozenset(findings))
    check_findings(findings)
    rng = np.random.default_rng(seed)
    anatomy = anatomy or Anatomy.sample(rng)
    num_samples = round(duration_s * fs)
    beats = make_beats(rng, findings, duration_s, anatomy)
    dipole = _render(rng, beats, findings, anatomy, fs, num_samples)
    leads = (anatomy.lead_field.astype(np.float32)) @ dipole
    if noise > 0:
        level = noise * (4.0 if "poor_quality" in findings.flags else 1.0)
        leads += _noise(rng, fs, num_samples, level)
    return _twelve_leads(leads, reverse_arms="arm_leads_reversed" in findings.flags)


def check_findings(findings: Findings) -> None:
    """Raise a UserError for rhythms and flags that no code draws."""
    if findings.rhythm not in RHYTHMS:
        raise UserError(
            f"Unknown rhythm {findings.rhythm!r}." + did_you_mean(findings.rhythm, RHYTHMS)
        )
    for flag in findings.flags - FLAGS:
        raise UserError(f"Unknown finding {flag!r}." + did_you_mean(flag, FLAGS))


def _twelve_leads(leads: Signal | Floats, reverse_arms: bool) -> Signal:
    """Return twelve leads from I, II, V1-V6; Einthoven and Goldberger give the other four."""
    lead_1, lead_2 = leads[0], leads[1]
    if reverse_arms:  # Right and left arm cables swapped: I turns over, II and III change places.
        lead_1, lead_2 = -lead_1, lead_2 - lead_1
    signal = np.empty((12, leads.shape[1]), np.float32)
    signal[0], signal[1] = lead_1, lead_2
    signal[2] = lead_2 - lead_1
    signal[3] = -0.5 * (lead_1 + lead_2)
    signal[4] = lead_1 - 0.5 * lead_2
    signal[5] = lead_2 - 0.5 * lead_1
    signal[6:] = leads[2:]
    return signal


def _rotate_frontal(vectors: Floats, angle_rad: float) -> Floats:
    """Return vectors (..., 3) turned about Z, towards the feet for positive angles."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    turned = vectors.copy()
    turned[..., 0] = cos * vectors[..., 0] - sin * vectors[..., 1]
    turned[..., 1] = sin * vectors[..., 0] + cos * vectors[..., 1]
    return turned


def _frontal_angle(axis_deg: float, lead_field: Floats) -> float:
    """Return the angle in X, Y of a dipole whose axis, measured from I and aVF, is `axis_deg`."""
    # aVF is longer than I by 2/sqrt(3) in this measure (Goldberger's leads are augmented by 1.5).
    to_leads = np.stack(
        [lead_field[0, :2], 2 / np.sqrt(3) * (lead_field[1] - lead_field[0] / 2)[:2]]
    )
    wanted = np.array([np.cos(np.radians(axis_deg)), np.sin(np.radians(axis_deg))])
    x, y = np.linalg.solve(to_leads, wanted)
    return float(np.arctan2(y, x))


def _axis_deg(rng: np.random.Generator, findings: Findings, anatomy: Anatomy) -> float | None:
    for flag, (low, high) in _AXES_DEG.items():
        if flag in findings.flags:
            return float(rng.uniform(low, high))
    if findings.flags & _LVH:  # The heart lies more across.
        return max(anatomy.axis_deg - 20.0, -24.0)
    if findings.flags.isdisjoint(INFARCTS):
        return anatomy.axis_deg
    return None


def _conducted(rng: np.random.Generator, findings: Findings, anatomy: Anatomy) -> Morphology:
    """Return the shape of a beat that comes over the His bundle."""
    flags = findings.flags
    strength = 0.55 if "weakened" in flags else rng.uniform(0.9, 1.25)
    qrs = _LBBB_QRS.copy() if "lbbb" in flags else _NORMAL_QRS.copy()
    qrs[:, :3] *= anatomy.qrs_width
    t = _NORMAL_T * anatomy.t_gain + anatomy.t_tilt * 0.5
    st = np.array([0.01, 0.01, -0.02])
    st_begin_s = 0.05

    if "ilbbb" in flags:  # The septum is no longer activated from the left: no q in I, V6.
        qrs[0, 3:] = [0.15, 0.05, 0.05]
        qrs[:, :3] *= 1.18
    if "ivcd" in flags:
        qrs[:, :3] *= rng.uniform(1.45, 1.7)
        st_begin_s = 0.08

    axis_deg = _axis_deg(rng, findings, anatomy)
    area = (qrs[:, 3:] * (qrs[:, 1] + qrs[:, 2])[:, None]).sum(axis=0)
    if axis_deg is None:
        axis_deg, base_deg = anatomy.axis_deg, 50.0
        turn = np.radians(axis_deg - base_deg)
    else:
        turn = _frontal_angle(axis_deg, anatomy.lead_field) - np.arctan2(area[1], area[0])
    qrs[:, 3:] = _rotate_frontal(qrs[:, 3:], turn)
    # The T axis follows the QRS axis only in part, the septum not at all under a fascicular block.
    t = _rotate_frontal(t, 0.3 * float((turn + np.pi) % (2 * np.pi) - np.pi))
    if flags & {"lafb", "rbbb_lafb"}:
        qrs[0, 3:] = [0.05, 0.30, -0.2]
    if "lpfb" in flags:
        qrs[0, 3:] = [0.25, -0.25, -0.2]

    if flags & _LVH:  # The wall is thicker at the back left; the size itself is set at the end.
        qrs[2, 5] *= 1.5
    if "rvh" in flags:
        qrs = np.vstack([qrs, [0.012, 0.012, 0.014, -0.55, 0.1, -1.9]])
        t = t + np.array([0.0, 0.0, 0.35])
    if "posterior_infarct" in flags or "inferoposterior_infarct" in flags:
        t = t + np.array([0.0, 0.0, -0.12])
    for name in INFARCTS:
        if name in flags:
            extra = np.array(_Q_VECTORS[name])
            extra[:, 3:] *= strength
            qrs = np.vstack([qrs, extra])
            if "posterior" not in name:
                qrs[0, 3:] *= 0.3
            # The T wave turns away from the scar a little.
            t = t + 0.22 * strength * extra[0, 3:]

    if flags & {"rbbb", "rbbb_lafb"}:
        qrs = np.vstack([qrs, [rng.uniform(0.050, 0.058), 0.014, 0.017, -0.75, -0.05, -0.68]])
        t = t + np.array([0.06, 0.0, 0.24])
        st_begin_s = 0.09
    if "irbbb" in flags:
        qrs = np.vstack([qrs, [0.040, 0.009, 0.010, -0.42, -0.02, -0.46]])
        t = t + np.array([0.02, 0.0, 0.10])
    if "rsr" in flags:
        qrs = np.vstack([qrs, [0.035, 0.008, 0.008, -0.22, 0.0, -0.34]])
    if "lbbb" in flags:
        t = np.array([-0.34, -0.08, -0.42]) * anatomy.t_gain
        st = np.array([-0.09, -0.03, -0.14])
        st_begin_s = 0.09
    if "wpw" in flags:
        qrs = np.vstack([qrs, [-0.036, 0.016, 0.015, 0.38, 0.12, -0.22]])
        t = t * np.array([-0.2, 0.3, 0.8])
    if flags & {"lvh_strain"}:
        t = np.array([-0.28, -0.10, -0.22])
        st = st + np.array([-0.12, -0.05, -0.02])

    if "t_abnormal" in flags or "st_t_abnormal" in flags:
        t = t * rng.uniform(-0.45, 0.15)
    if "st_abnormal" in flags or "st_t_abnormal" in flags:
        st = st + rng.uniform(0.8, 1.3) * np.array([-0.09, -0.06, 0.03])
    if "digitalis" in flags:
        st = st + np.array([-0.11, -0.08, 0.02])
        t = t * 0.3
    for name in INJURIES:
        if name in flags:
            injury = rng.uniform(0.8, 1.6) * np.array(_INJURY_VECTORS[name])
            st, t = st + injury, t + 0.9 * injury
    if "pericarditis" in flags:
        st = st + rng.uniform(0.8, 1.2) * np.array([0.13, 0.15, -0.08])
    if "early_repolarization" in flags:
        st = st + np.array([0.09, 0.09, -0.12])
        t = t * 1.35
        qrs = np.vstack([qrs, [0.052, 0.008, 0.010, 0.12, 0.10, 0.0]])

    if "low_voltage" in flags:
        t, st = t * 0.5, st * 0.5
    qrs[:, 3:] *= anatomy.voltage * _voltage_correction(rng, qrs, flags, anatomy)
    return Morphology(qrs, st, t, st_begin_s)


def _voltage_correction(
    rng: np.random.Generator, qrs: Floats, flags: frozenset[str], anatomy: Anatomy
) -> float:
    """Return the factor that makes a QRS meet the voltage criteria of its findings, no others.

    Source: left ventricular hypertrophy by S(V1) + R(V5 or V6) >= 3.5 mV (Sokolow & Lyon, Am Heart
    J 1949;37:161); low voltage by less than 0.5 mV in every limb lead.
    """
    time_s = np.arange(-0.12, 0.14, 0.002)[:, None]
    distance = time_s - qrs[:, 0]
    bumps = np.exp(-0.5 * (distance / np.where(distance < 0, qrs[:, 1], qrs[:, 2])) ** 2)
    leads = _twelve_leads((anatomy.lead_field @ (bumps @ qrs[:, 3:]).T), reverse_arms=False)
    leads *= anatomy.voltage
    limb_mv = float(np.ptp(leads[:6], axis=1).max())
    sokolow_mv = float(max(0.0, -leads[6].min()) + leads[10:].max())
    if "low_voltage" in flags:
        return float(rng.uniform(0.30, 0.44)) / limb_mv
    if flags & {"lvh", "lvh_strain"}:
        return min(float(rng.uniform(3.9, 5.0)) / sokolow_mv, 3.4 / limb_mv)
    if "lvh_voltage" in flags:
        return float(rng.uniform(3.6, 4.3)) / sokolow_mv
    if flags & {"lbbb", "wpw", "rvh"}:
        return 1.0  # The criterion does not hold here.
    if "pulmonary" in flags:
        return min(0.7, 2.0 / sokolow_mv)
    return max(min(1.0, 3.3 / sokolow_mv), 0.65 / limb_mv)


def _wide(qrs: Floats, gain: float) -> Morphology:
    """Return a beat from the ventricle: ST and T point away from the QRS."""
    qrs = qrs.copy()
    qrs[:, 3:] *= gain
    main = qrs[:, 3:].mean(axis=0)
    return Morphology(qrs, st=-0.10 * main, t=-0.42 * main, st_begin_s=0.085)


def _p_components(kind: int, findings: Findings, anatomy: Anatomy) -> Floats:
    components = _P_WAVES[kind].copy()
    components[:, 3:] *= anatomy.p_gain
    if kind == P_SINUS:
        if "lae" in findings.flags:  # Broad and notched in II, deep negative end in V1.
            components[1] += [0.026, 0.003, 0.004, 0.05, 0.05, 0.11]
        if findings.flags & {"rae", "pulmonary"}:
            components[0, 3:] = [0.02, 0.25, -0.12]
    return components


def _render(
    rng: np.random.Generator,
    beats: Beats,
    findings: Findings,
    anatomy: Anatomy,
    fs: float,
    num_samples: int,
) -> Signal:
    """Return the dipole over time. Shape: (3, num_samples), mV."""
    margin = round(1.2 * fs)
    canvas = np.zeros((num_samples + 2 * margin, 3), np.float32)
    # Breathing moves the heart: the QRS grows and shrinks by a few per cent.
    breathing_hz, phase = rng.uniform(0.18, 0.32), rng.uniform(0, 2 * np.pi)
    shapes = {
        CONDUCTED: lambda: _conducted(rng, findings, anatomy),
        VENTRICULAR: lambda: _wide(_VENTRICULAR_QRS[anatomy.ectopic_focus], anatomy.voltage),
        PACED: lambda: _wide(_PACED_QRS, anatomy.voltage),
    }
    for kind in np.unique(beats.kinds).tolist():
        shape = shapes[kind]()
        chosen = beats.kinds == kind
        r_s, qt_s = beats.r_s[chosen], beats.qt_s[chosen]
        swing = 1.0 + 0.035 * np.sin(2 * np.pi * breathing_hz * r_s + phase)
        _add(canvas, margin, fs, r_s, shape.qrs, swing, (-0.13, 0.14))
        _add_repolarisation(canvas, margin, fs, r_s, qt_s, shape, swing)
    for kind in np.unique(beats.p_kinds).tolist():
        p_s = beats.p_s[beats.p_kinds == kind]
        components = _p_components(kind, findings, anatomy)
        _add(canvas, margin, fs, p_s, components, np.ones(len(p_s)), (-0.09, 0.11))
        if kind == P_SINUS and "pericarditis" in findings.flags:
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
    amplitude = rng.uniform(0.045, 0.11)
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
    direction = np.array([0.35, 1.0, 0.5]) * rng.uniform(0.7, 1.8) * rng.choice([1.0, -1.0])
    tail = np.array([1.0, -0.18, -0.08]) if fs >= 400 else np.array([0.9, -0.1])
    for start in np.rint(spikes_s * fs).astype(int).tolist():
        if 0 <= start <= dipole.shape[1] - len(tail):
            dipole[:, start : start + len(tail)] += np.outer(direction, tail).astype(np.float32)


_ELECTRODES_TO_LEADS = np.zeros((8, 9), np.float32)
"""Rows I, II, V1-V6; columns RA, LA, LL, V1-V6. Chest leads refer to Wilson's terminal."""
_ELECTRODES_TO_LEADS[0, :2] = [-1, 1]
_ELECTRODES_TO_LEADS[1, [0, 2]] = [-1, 1]
_ELECTRODES_TO_LEADS[2:, 3:] = np.eye(6)
_ELECTRODES_TO_LEADS[2:, :3] = -1 / 3


def _noise(rng: np.random.Generator, fs: float, num_samples: int, level: float) -> Signal:
    """Return noise that arises at the electrodes, so that leads share it as they do in life.

    Shape: (8, num_samples), mV: baseline wander (breathing, drift), mains hum, muscle.
    """
    time_s = np.arange(num_samples, dtype=np.float32) / np.float32(fs)
    wander_hz = np.array([rng.uniform(0.15, 0.35), rng.uniform(0.35, 0.6), 0.06], np.float32)
    mains_hz = np.float32(60.0)
    angles = 2 * np.pi * np.concatenate([wander_hz, [mains_hz]])[:, None] * time_s
    angles += rng.uniform(0, 2 * np.pi, (4, 1))
    tones = np.sin(angles).astype(np.float32)
    weights = rng.standard_normal((9, 4)).astype(np.float32)
    weights[:, :3] *= level * 0.035 * rng.lognormal(0.0, 0.5) * np.array([1.0, 0.5, 1.0])
    weights[:, 3] *= level * 0.004 * rng.lognormal(0.0, 0.8)
    muscle = rng.standard_normal((9, num_samples + 1), dtype=np.float32)
    # The difference tilts the spectrum towards high frequencies, where muscle noise lies.
    electrodes = 0.75 * muscle[:, 1:] - 0.45 * muscle[:, :-1]
    electrodes *= np.float32(level * 0.006 * rng.lognormal(0.0, 0.5))
    electrodes += weights @ tones
    result: Signal = _ELECTRODES_TO_LEADS @ electrodes
    return result

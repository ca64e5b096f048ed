"""The shape of beats: QRS, ST and T as a moving dipole, normal and with every finding.

The heart is one dipole in Frank's axes (X left, Y feet, Z back). P, QRS and T are sums of Gaussians
in time, each with its own direction; disease changes them: a block adds a late slow component, an
infarct takes away what the dead wall would have added.

Source: Gaussian wave components as in McSharry et al., IEEE Trans Biomed Eng 2003;50:289, moved to
the dipole by Sameni et al., EURASIP J Adv Signal Process 2007:043407. What a finding looks like
follows Surawicz & Knilans, Chou's Electrocardiography in Clinical Practice, 6th ed., and the
AHA/ACCF/HRS recommendations (Surawicz et al., Circulation 2009;119:e235 for conduction; Hancock et
al., e251 for chamber size; Wagner et al., e262 for ischaemia).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.events import P_ECTOPIC, P_RETROGRADE, P_SINUS, Findings
from ecgfounder_train.simulate.sinus import DISTURBANCES

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
RECORDING_FLAGS = (
    *("poor_quality", "mains_hum", "motion", "clipping", "lead_off"),
    *("arm_leads_reversed", "leg_lead_reversed", "chest_leads_reversed"),
)
"""What went wrong while recording."""
FLAGS = frozenset(
    {
        *INFARCTS,
        *INJURIES,
        # Conduction
        *("lbbb", "ilbbb", "rbbb", "irbbb", "rsr", "ivcd", "ivcb", "lafb", "lpfb", "wpw"),
        *("rbbb_lafb", "rbbb_lpfb"),
        # Axis, size, voltage
        *("left_axis", "leftward_axis", "right_axis", "rightward_axis", "superior_axis"),
        *("lvh", "lvh_voltage", "lvh_strain", "lvh_wide", "lvh_wide_strain", "r_avl", "bvh"),
        *("rvh", "lae", "rae", "low_voltage", "pulmonary"),
        # Repolarisation
        *("t_abnormal", "st_abnormal", "st_t_abnormal", "long_qt", "pericarditis"),
        *("early_repolarization", "digitalis", "rv_involvement", "acute"),
        # Rhythm modifiers (see rhythm.py and sinus.py)
        *DISTURBANCES,
        *("sinus_arrhythmia", "marked_sinus_arrhythmia", "first_degree_av_block", "short_pr"),
        *("prolonged_av", "variable_av_block", "two_to_one", "atrial_fibrillation"),
        *("competing_junctional", "retrograde", "sinus_capture", "fusion"),
        *("supraventricular_complexes",),
        # A scar behind a fascicular block, and signs weaker than usual
        *("masked_infarct", "weakened"),
        # Recording (see noise.py)
        *RECORDING_FLAGS,
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
VENTRICULAR_QRS = (
    # By origin: right outflow tract, left free wall, right apex, left apex.
    np.array([[-0.012, 0.017, 0.019, 0.5, 1.2, 0.7], [0.028, 0.019, 0.023, 0.4, 1.1, 0.9]]),
    np.array([[-0.012, 0.017, 0.019, -0.9, 0.4, -1.1], [0.028, 0.019, 0.023, -1.0, 0.5, -0.7]]),
    np.array([[-0.012, 0.017, 0.019, 0.8, -0.9, 0.6], [0.028, 0.019, 0.023, 0.7, -1.0, 0.9]]),
    np.array([[-0.012, 0.017, 0.019, -0.5, -1.1, -0.8], [0.028, 0.019, 0.023, -0.8, -1.0, -0.5]]),
)
PACED_QRS = np.array(
    [[-0.019, 0.013, 0.016, 0.42, -0.72, 0.52], [0.018, 0.017, 0.022, 0.55, -1.00, 1.00]]
)
PACED_BOTH_QRS = np.array(
    [[-0.022, 0.012, 0.015, -0.60, -0.40, -0.55], [0.012, 0.014, 0.019, -0.42, -0.80, 0.25]]
)
_RIGHT_BUNDLE = np.array([0.054, 0.014, 0.017, -0.75, -0.05, -0.68])
_P_WAVES = {
    # Right atrium first (feet, a little forwards), then the left (left, back).
    P_SINUS: np.array(
        [[-0.018, 0.016, 0.017, 0.035, 0.085, -0.045], [0.014, 0.017, 0.017, 0.06, 0.065, 0.045]]
    ),
    P_ECTOPIC: np.array([[0.0, 0.018, 0.018, 0.03, -0.10, 0.02]]),
    P_RETROGRADE: np.array([[0.0, 0.016, 0.016, -0.01, -0.12, -0.02]]),
}
_LVH = frozenset({"lvh", "lvh_voltage", "lvh_strain", "lvh_wide", "lvh_wide_strain", "bvh"})
_STRAIN = frozenset({"lvh_strain", "lvh_wide_strain"})
_LEFT_ANTERIOR = frozenset({"lafb", "rbbb_lafb", "masked_infarct"})
_LEFT_POSTERIOR = frozenset({"lpfb", "rbbb_lpfb"})
_RIGHT_BLOCK = frozenset({"rbbb", "rbbb_lafb", "rbbb_lpfb"})
_NORMAL_T = np.array([0.29, 0.23, -0.22])

# A dead wall adds nothing: the first vector (the septum) is replaced, the second (apex and front
# wall) loses what pointed to the scar, the third (free left wall) too. Rows: what the septum
# becomes, what is added to the apex, to the free wall; X, Y, Z in mV.
_SCARS = {
    "septal_infarct": [[0.06, 0.02, 0.24], [0.0, 0.0, 0.44], [0.0, 0.0, 0.0]],
    "anteroseptal_infarct": [[0.0, 0.02, 0.36], [-0.40, 0.0, 0.80], [-0.05, 0.0, 0.05]],
    "anterior_infarct": [[-0.28, 0.0, -0.04], [-0.85, 0.0, 0.42], [0.10, 0.0, -0.08]],
    "lateral_infarct": [[-0.58, 0.08, -0.16], [-0.60, 0.0, -0.05], [-0.20, 0.0, 0.0]],
    "anterolateral_infarct": [[-0.50, 0.0, 0.02], [-1.10, 0.0, 0.46], [-0.10, 0.0, 0.0]],
    "inferior_infarct": [[-0.02, -0.44, -0.24], [0.0, -0.62, 0.0], [0.0, 0.14, 0.0]],
    "inferoposterior_infarct": [[0.0, -0.46, -0.26], [0.0, -0.80, -0.45], [0.0, -0.1, -1.05]],
    "posterior_infarct": [[-0.10, -0.02, -0.26], [0.0, 0.0, -0.60], [0.0, 0.0, -1.10]],
}
_INJURY_VECTORS = {
    "anterior_injury": [0.10, 0.0, -0.26],
    "inferior_injury": [-0.06, 0.30, 0.04],
    "lateral_injury": [0.30, -0.06, 0.04],
    "anterolateral_injury": [0.26, -0.02, -0.20],
    "inferolateral_injury": [0.20, 0.24, 0.04],
}
_ACUTE_WALLS = {
    "septal_infarct": "anterior_injury",
    "anteroseptal_infarct": "anterior_injury",
    "anterior_infarct": "anterior_injury",
    "lateral_infarct": "lateral_injury",
    "anterolateral_infarct": "anterolateral_injury",
    "inferior_infarct": "inferior_injury",
    "inferoposterior_infarct": "inferior_injury",
    "posterior_infarct": "inferior_injury",
}
_AXES_DEG = {
    "left_axis": (-75.0, -35.0),
    "leftward_axis": (-29.0, -15.0),
    "lafb": (-75.0, -47.0),
    "rbbb_lafb": (-75.0, -47.0),
    "masked_infarct": (-80.0, -55.0),
    "r_avl": (-28.0, -10.0),
    "rightward_axis": (91.0, 100.0),
    "right_axis": (102.0, 140.0),
    "lpfb": (105.0, 140.0),
    "rbbb_lpfb": (105.0, 140.0),
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
    if findings.flags & _LVH:  # A more horizontal heart.
        return max(anatomy.axis_deg - 20.0, -24.0)
    if findings.flags.isdisjoint(INFARCTS):
        return anatomy.axis_deg
    return None


def conducted(rng: np.random.Generator, findings: Findings, anatomy: Anatomy) -> Morphology:
    """Return the shape of a beat that comes over the His bundle."""
    flags = findings.flags
    strength = 0.6 if "weakened" in flags else rng.uniform(0.9, 1.2)
    qrs = _LBBB_QRS.copy() if "lbbb" in flags else _NORMAL_QRS.copy()
    qrs[:, :3] *= anatomy.qrs_width
    t = _NORMAL_T * anatomy.t_gain + anatomy.t_tilt * 0.5
    st = np.array([0.01, 0.01, -0.02])
    st_begin_s = 0.05

    if "ilbbb" in flags:  # The septum is no longer activated from the left: no q in I, V6.
        qrs[0, 3:] = [0.15, 0.05, 0.05]
        qrs[:, :3] *= 1.22
    if flags & {"ivcd", "ivcb"}:
        qrs[:, :3] *= rng.uniform(1.35, 1.5) if "ivcd" in flags else rng.uniform(1.65, 1.9)
        st_begin_s = 0.08
    if flags & {"lvh_wide", "lvh_wide_strain"}:
        qrs[:, :3] *= rng.uniform(1.32, 1.48)
        st_begin_s = 0.075

    turn = _turn(rng, qrs, findings, anatomy)
    qrs[:, 3:] = _rotate_frontal(qrs[:, 3:], turn)
    # The T axis follows the QRS axis only in part.
    t = _rotate_frontal(t, 0.3 * float((turn + np.pi) % (2 * np.pi) - np.pi))
    if flags & _LEFT_ANTERIOR:
        qrs[0, 3:] = [0.05, 0.30, -0.2]
    if "masked_infarct" in flags:  # The r wave that the block leaves in II, III, aVF is gone.
        qrs[0, 3:] = [-0.05, -0.20, -0.2]
    if flags & _LEFT_POSTERIOR:
        qrs[0, 3:] = [0.25, -0.25, -0.2]

    if flags & _LVH:  # The wall is thicker at the back left; the size itself is set at the end.
        qrs[2, 5] *= 1.5
    if "rvh" in flags:
        qrs = np.vstack([qrs, [0.012, 0.012, 0.014, -0.55, 0.1, -1.9]])
        t = t + np.array([0.0, 0.0, 0.35])
    if "bvh" in flags:
        qrs = np.vstack([qrs, [-0.004, 0.010, 0.010, -0.35, 0.1, -1.35]])
    qrs, t = _scarred(qrs, t, flags, strength)

    if flags & _RIGHT_BLOCK:
        qrs = np.vstack([qrs, _RIGHT_BUNDLE])
        t = t + np.array([0.06, 0.0, 0.24])
        st_begin_s = 0.09
    if "irbbb" in flags:
        qrs = np.vstack([qrs, [0.040, 0.009, 0.010, -0.42, -0.02, -0.46]])
        t = t + np.array([0.02, 0.0, 0.10])
    if "rsr" in flags:
        qrs = np.vstack([qrs, [0.035, 0.008, 0.008, -0.30, 0.0, -0.42]])
    if "lbbb" in flags:
        t = np.array([-0.34, -0.08, -0.42]) * anatomy.t_gain
        st = np.array([-0.09, -0.03, -0.14])
        st_begin_s = 0.09
    if "wpw" in flags:  # The septum is reached from the side of the pathway: no q, a slurred rise.
        qrs[0, 3:] = [0.36, 0.14, -0.12]
        qrs = np.vstack([qrs, [-0.045, 0.014, 0.018, 0.26, 0.10, -0.18]])
        t = t * np.array([-0.2, 0.3, 0.8])

    st, t = _repolarisation(rng, flags, st, t)
    if "early_repolarization" in flags:
        qrs = np.vstack([qrs, [0.052, 0.008, 0.010, 0.12, 0.10, 0.0]])
    if "low_voltage" in flags:
        t, st = t * 0.5, st * 0.5
    qrs[:, 3:] *= anatomy.voltage * _voltage_correction(rng, qrs, flags, anatomy)
    return Morphology(qrs, st, t, st_begin_s)


def _turn(rng: np.random.Generator, qrs: Floats, findings: Findings, anatomy: Anatomy) -> float:
    """Return by how much the QRS is to be turned for its axis, in radians."""
    axis_deg = _axis_deg(rng, findings, anatomy)
    if axis_deg is None:
        return float(np.radians(anatomy.axis_deg - 50.0))
    area = (qrs[:, 3:] * (qrs[:, 1] + qrs[:, 2])[:, None]).sum(axis=0)
    return _frontal_angle(axis_deg, anatomy.lead_field) - float(np.arctan2(area[1], area[0]))


def _scarred(
    qrs: Floats, t: Floats, flags: frozenset[str], strength: float
) -> tuple[Floats, Floats]:
    """Return QRS and T without what the dead wall would have added; T turns away from it."""
    for name, (septum, apex, free_wall) in _SCARS.items():
        if name in flags:
            healthy = qrs[0, 3:].copy()
            qrs[0, 3:] = (1.0 - min(strength, 1.0)) * healthy + strength * np.array(septum)
            qrs[1, 3:] += strength * np.array(apex)
            qrs[2, 3:] += strength * np.array(free_wall)
            t = t + 0.22 * strength * (np.array(septum) + 0.5 * np.array(apex))
    if flags & {"posterior_infarct", "inferoposterior_infarct"}:
        t = t + np.array([0.0, 0.0, -0.12])
    return qrs, t


def _repolarisation(
    rng: np.random.Generator, flags: frozenset[str], st: Floats, t: Floats
) -> tuple[Floats, Floats]:
    """Return ST and T as the findings change them."""
    if flags & _STRAIN:
        t = np.array([-0.28, -0.10, -0.22])
        st = st + np.array([-0.12, -0.05, -0.02])
    if flags & {"t_abnormal", "st_t_abnormal"}:
        t = t * rng.uniform(-0.45, 0.15)
    if flags & {"st_abnormal", "st_t_abnormal"}:
        st = st + rng.uniform(0.8, 1.3) * np.array([-0.09, -0.06, 0.03])
    if "digitalis" in flags:  # A sagging ST that takes the T wave down with it, and a short QT.
        st = st + np.array([-0.13, -0.10, 0.03])
        t = t * np.array([0.10, 0.15, 0.5])
    for name in INJURIES:
        if name in flags:
            injury = rng.uniform(0.8, 1.6) * np.array(_INJURY_VECTORS[name])
            st, t = st + injury, t + 0.9 * injury
    if "acute" in flags:  # The border of a fresh scar is injured.
        for name, wall in _ACUTE_WALLS.items():
            if name in flags:
                injury = rng.uniform(0.9, 1.5) * np.array(_INJURY_VECTORS[wall])
                st, t = st + injury, t + 0.7 * injury
    if "rv_involvement" in flags:  # The right ventricle faces V1.
        st = st + np.array([-0.14, 0.02, -0.13])
    if "pericarditis" in flags:
        st = st + rng.uniform(0.8, 1.2) * np.array([0.13, 0.15, -0.08])
    if "early_repolarization" in flags:
        st = st + np.array([0.09, 0.09, -0.12])
        t = t * 1.35
    return st, t


def _voltage_correction(
    rng: np.random.Generator, qrs: Floats, flags: frozenset[str], anatomy: Anatomy
) -> float:
    """Return the factor that makes a QRS meet the voltage criteria of its findings, no others.

    Source: left ventricular hypertrophy by S(V1) + R(V5 or V6) >= 3.5 mV (Sokolow & Lyon, Am Heart
    J 1949;37:161), by R(aVL) > 1.1 mV (the same); low voltage by less than 0.5 mV in every limb
    lead.
    """
    leads = anatomy.voltage * qrs_leads(qrs, anatomy.lead_field, step_s=0.004)
    limb_mv = float(np.ptp(leads[:6], axis=1).max())
    sokolow_mv = float(max(0.0, -leads[6].min()) + leads[10:].max())
    if "low_voltage" in flags:
        return float(rng.uniform(0.30, 0.44)) / limb_mv
    if "bvh" in flags:
        return float(rng.uniform(2.6, 3.2)) / float(leads[10].max())
    if "r_avl" in flags:
        return float(rng.uniform(1.2, 1.5)) / float(leads[4].max())
    if flags & (_LVH - {"lvh_voltage"}):
        return min(float(rng.uniform(3.9, 5.0)) / sokolow_mv, 3.4 / limb_mv)
    if "lvh_voltage" in flags:
        return float(rng.uniform(3.6, 4.3)) / sokolow_mv
    if flags & {"lbbb", "wpw", "rvh"}:
        return 1.0  # The criterion does not hold here.
    if "pulmonary" in flags:
        return min(0.7, 2.0 / sokolow_mv)
    return max(min(1.0, 3.3 / sokolow_mv), 0.65 / limb_mv)


def qrs_leads(qrs: Floats, lead_field: Floats, step_s: float) -> Floats:
    """Return twelve leads of a QRS alone, from 120 ms before its reference to 140 ms after it."""
    time_s = np.arange(-0.12, 0.14, step_s)[:, None]
    distance = time_s - qrs[:, 0]
    bumps = np.exp(-0.5 * (distance / np.where(distance < 0, qrs[:, 1], qrs[:, 2])) ** 2)
    leads: Floats = twelve_leads(lead_field @ (bumps @ qrs[:, 3:]).T)
    return leads


def twelve_leads(leads: NDArray[Any]) -> NDArray[Any]:
    """Return twelve leads from I, II, V1-V6; Einthoven and Goldberger give the other four."""
    lead_1, lead_2 = leads[0], leads[1]
    signal = np.empty((12, leads.shape[1]), leads.dtype)
    signal[0], signal[1] = lead_1, lead_2
    signal[2] = lead_2 - lead_1
    signal[3] = -0.5 * (lead_1 + lead_2)
    signal[4] = lead_1 - 0.5 * lead_2
    signal[5] = lead_2 - 0.5 * lead_1
    signal[6:] = leads[2:]
    return signal


def from_ventricle(qrs: Floats, gain: float) -> Morphology:
    """Return a beat from the ventricle: ST and T point away from the QRS."""
    qrs = qrs.copy()
    qrs[:, 3:] *= gain
    main = qrs[:, 3:].mean(axis=0)
    return Morphology(qrs, st=-0.10 * main, t=-0.42 * main, st_begin_s=0.08)


def fusion(sinus: Morphology, other: Morphology) -> Morphology:
    """Return a beat that two fronts make together, the conducted one a little more."""
    qrs = np.vstack([sinus.qrs, other.qrs])
    qrs[: len(sinus.qrs), 3:] *= 0.6
    qrs[len(sinus.qrs) :, 3:] *= 0.4
    st, t = 0.6 * sinus.st + 0.4 * other.st, 0.6 * sinus.t + 0.4 * other.t
    return Morphology(qrs, st, t, other.st_begin_s)


def aberrant(beat: Morphology, gain: float) -> Morphology:
    """Return a conducted beat that finds the right bundle not yet ready."""
    late = _RIGHT_BUNDLE.copy()
    late[3:] *= gain
    st, t = beat.st, beat.t * 0.6 + np.array([0.06, 0.0, 0.24])
    return Morphology(np.vstack([beat.qrs, late]), st, t, 0.09)


def p_components(kind: int, findings: Findings, anatomy: Anatomy) -> Floats:
    """Return the components of one kind of P wave."""
    components = _P_WAVES[kind].copy()
    components[:, 3:] *= anatomy.p_gain
    if kind == P_SINUS:
        if "lae" in findings.flags:  # Broad and notched in II, deep negative end in V1.
            components[1] += [0.026, 0.003, 0.004, 0.05, 0.05, 0.11]
        if findings.flags & {"rae", "pulmonary"}:
            components[0, 3:] = [0.02, 0.25, -0.12]
    return components

"""What an ECG has and what its interpretation says: findings of patients, 12SL statement cells.

`PatientState.sample` draws what a patient has for life, `sample_findings` what one ECG shows,
`statements` the sequence of 12SL codes a reader would write about it, with the connectives and
the class code at the end. A finding is in the waveform exactly if its statement is in the truth.

Source: the shares follow HEEDB where they are published (AF 9.2 %, sinus rhythm 63 %, bradycardia
11-14 %, tachycardia 11 %, RBBB 5.4-6 %, first degree AV block 5.5-6.5 %); the rest falls off in the
order of ECGFounder's label list, which looks like descending frequency.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.rhythm import Findings
from ecgfounder_train.simulate.waveform import INFARCTS

PREVALENCES: dict[str, float] = {
    # Rhythm. Share of ECGs; sinus rhythm is what is left.
    "atrial_fibrillation": 0.092,
    "atrial_flutter": 0.014,
    "paced": 0.034,
    "ectopic_atrial": 0.008,
    "junctional": 0.006,
    "svt": 0.005,
    "vt": 0.002,
    "idioventricular": 0.001,
    "complete_heart_block": 0.002,
    "mobitz_1": 0.002,
    "multifocal_atrial": 0.001,
    # Share of ECGs in sinus rhythm.
    "sinus_bradycardia": 0.145,
    "sinus_tachycardia": 0.130,
    "sinus_arrhythmia": 0.030,
    "marked_sinus_arrhythmia": 0.010,
    "sinus_pause": 0.001,
    "first_degree_av_block": 0.065,
    "short_pr": 0.012,
    "pac": 0.065,
    # Share of ECGs in sinus rhythm or AF.
    "pvc": 0.065,
    "bigeminy": 0.004,
    # Conduction: one of these or none.
    "rbbb": 0.047,
    "lbbb": 0.040,
    "irbbb": 0.028,
    "lafb": 0.026,
    "ivcd": 0.012,
    "rbbb_lafb": 0.010,
    "rsr": 0.009,
    "ilbbb": 0.005,
    "lpfb": 0.003,
    "wpw": 0.003,
    # Axis: one of these or none.
    "left_axis": 0.060,
    "rightward_axis": 0.022,
    "right_axis": 0.020,
    "leftward_axis": 0.015,
    "superior_axis": 0.004,
    # Size and voltage: one of these or none.
    "low_voltage": 0.050,
    "lvh_voltage": 0.045,
    "lvh": 0.025,
    "lvh_strain": 0.016,
    "rvh": 0.006,
    "pulmonary": 0.006,
    "lae": 0.055,
    "rae": 0.012,
    # Infarct: one of these or none.
    "septal_infarct": 0.045,
    "inferior_infarct": 0.045,
    "anterior_infarct": 0.035,
    "lateral_infarct": 0.018,
    "anteroseptal_infarct": 0.014,
    "anterolateral_infarct": 0.010,
    "inferoposterior_infarct": 0.004,
    "posterior_infarct": 0.003,
    # Repolarisation: one of these or none.
    "t_abnormal": 0.090,
    "st_t_abnormal": 0.022,
    "st_abnormal": 0.028,
    "early_repolarization": 0.012,
    "digitalis": 0.005,
    "inferior_injury": 0.004,
    "anterior_injury": 0.004,
    "lateral_injury": 0.003,
    "anterolateral_injury": 0.002,
    "inferolateral_injury": 0.002,
    "pericarditis": 0.002,
    "long_qt": 0.035,
}
"""Expected share of ECGs with a finding, before exclusions between findings."""

_CONDUCTION = (
    *("rbbb", "lbbb", "irbbb", "lafb", "ivcd", "rbbb_lafb", "rsr", "ilbbb", "lpfb", "wpw"),
)
_AXIS = ("left_axis", "rightward_axis", "right_axis", "leftward_axis", "superior_axis")
_SIZE = ("low_voltage", "lvh_voltage", "lvh", "lvh_strain", "rvh", "pulmonary")
_REPOLARISATION = (
    *("t_abnormal", "st_t_abnormal", "st_abnormal", "early_repolarization", "digitalis"),
    *("inferior_injury", "anterior_injury", "lateral_injury", "anterolateral_injury"),
    *("inferolateral_injury", "pericarditis"),
)
_EPISODES = (
    *("atrial_flutter", "ectopic_atrial", "junctional", "svt", "vt", "idioventricular"),
    *("complete_heart_block", "mobitz_1", "multifocal_atrial"),
)
_PACING_MODES = ("ventricular", "atrial_sensed", "dual", "atrial")
_PACING_SHARES = (0.36, 0.24, 0.24, 0.16)
_AGE_DRIVEN = frozenset({"paced", "atrial_fibrillation", "first_degree_av_block", *_CONDUCTION})
_WIDE = frozenset({"lbbb", "rbbb", "rbbb_lafb", "ivcd", "wpw"})
_OWN_AXIS = frozenset({"lafb", "rbbb_lafb", "lpfb", "rvh", "pulmonary"})

NORMAL, OTHERWISE_NORMAL, BORDERLINE, ABNORMAL = 1684, 1687, 1693, 1699
_CLASSES = (NORMAL, OTHERWISE_NORMAL, BORDERLINE, ABNORMAL)
WITH, OR, POSSIBLE, CANNOT_RULE_OUT = 177, 178, 1680, 1682
AGE_UNDETERMINED, POOR_QUALITY, ARM_LEADS_REVERSED = 831, 1673, 1672
PEDIATRIC = 2
WEAKENING = frozenset({POSSIBLE, CANNOT_RULE_OUT})
_NO_PREVIOUS, _COMPARED, _NO_CHANGE = 1401, 1400, 1410

# Finding -> codes, severity as index into _CLASSES.
_AXIS_CODES = {
    "left_axis": ((372,), 2),
    "leftward_axis": ((370,), 1),
    "right_axis": ((383,), 2),
    "rightward_axis": ((380,), 2),
    "superior_axis": ((384,), 3),
}
_CONDUCTION_CODES = {
    "rbbb": ((440,), 3),
    "lbbb": ((460,), 3),
    "irbbb": ((445,), 2),
    "ilbbb": ((465,), 3),
    "lafb": ((470,), 3),
    "lpfb": ((471,), 3),
    "ivcd": ((487,), 2),
    "rbbb_lafb": ((440, 470, 480), 3),
    "rsr": ((450,), 2),
    "wpw": ((304,), 3),
}
_SIZE_CODES = {
    "low_voltage": ((410,), 2),
    "lvh_voltage": ((540,), 2),
    "lvh": ((541,), 3),
    "lvh_strain": ((541, 544), 3),
    "rvh": ((520,), 3),
    "pulmonary": ((411,), 3),
}
_INFARCT_CODES = {
    "septal_infarct": 700,
    "anterior_infarct": 740,
    "lateral_infarct": 760,
    "inferior_infarct": 780,
    "anteroseptal_infarct": 810,
    "anterolateral_infarct": 820,
    "inferoposterior_infarct": 801,
    "posterior_infarct": 802,
}
_REPOLARISATION_CODES = {
    "t_abnormal": ((1140,), 2),
    "st_abnormal": ((900,), 2),
    "st_t_abnormal": ((1141,), 3),
    "early_repolarization": ((1000,), 1),
    "digitalis": ((900, 1671), 3),
    "inferior_injury": ((950, 821), 3),
    "anterior_injury": ((930, 821), 3),
    "lateral_injury": ((940, 821), 3),
    "anterolateral_injury": ((961, 821), 3),
    "inferolateral_injury": ((962, 821), 3),
    "pericarditis": ((901,), 3),
}
_PACED_CODES = {
    "paced_ventricular": (296, 290),
    "paced_atrial": (295, 292),
    "paced_atrial_sensed": (297, 297),
    "paced_dual": (298, 293),
}
_EPISODE_CODES = {
    "ectopic_atrial": 64,
    "svt": 271,
    "vt": 248,
    "idioventricular": 238,
    "multifocal_atrial": 280,
}

# Statements that need an earlier ECG: said of a patient's later ECGs, without any signal.
_SERIAL = {
    1215: 0.024, 1214: 0.022, 1220: 0.019, 1224: 0.016, 1251: 0.015, 1250: 0.014, 1107: 0.010,
    1104: 0.009, 1219: 0.009, 1116: 0.008, 1218: 0.008, 1223: 0.007, 1221: 0.006, 1123: 0.005,
    1122: 0.005, 1203: 0.004, 1201: 0.004, 1105: 0.003, 1106: 0.002, 1124: 0.0015, 1121: 0.001,
    1120: 0.001,
}  # fmt: skip
_SERIAL_PLACES = (1450, 1451, 1453, 1454, 1456, 1457, 1459)
# Statements that this simulator gives no signal: said at the low rate of their place in the list.
_UNDRAWN = {
    244: 0.010, 299: 0.006, 246: 0.005, 237: 0.004, 545: 0.0015, 543: 0.002, 190: 0.002, 241: 0.003,
    174: 0.003, 232: 0.0015, 184: 0.0015, 235: 0.0015, 451: 0.0015, 294: 0.001, 478: 0.001,
    289: 0.001, 1669: 0.001, 243: 0.001, 806: 0.001, 482: 0.001, 782: 0.001, 32: 0.001, 175: 0.001,
    112: 0.001, 1423: 0.001, 371: 0.001, 31: 0.001, 245: 0.0008, 242: 0.0008, 829: 0.0008,
    111: 0.0006, 530: 0.0006, 247: 0.0006, 185: 0.0006, 479: 0.0005, 183: 0.0005, 570: 0.0004,
    381: 0.0004, 188: 0.0004, 108: 0.0004,
}  # fmt: skip


def prevalences(changes: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return the shares of all findings, some of them changed.

    Raises:
        UserError: An unknown finding, a share outside 0..1, alternatives that add up beyond 1.
    """
    shares = dict(PREVALENCES)
    for name, share in (changes or {}).items():
        if name not in shares:
            raise UserError(
                f"prevalences.{name}: no such finding." + did_you_mean(name, PREVALENCES)
            )
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise UserError(f"prevalences.{name} is {share!r}; a share lies between 0 and 1.")
        shares[name] = float(share)
    rhythms = ("atrial_fibrillation", "paced", *_EPISODES)
    for group in (rhythms, _CONDUCTION, _AXIS, _SIZE, INFARCTS, _REPOLARISATION):
        total = sum(shares[name] for name in group)
        if total > 1 + 1e-9:
            raise UserError(
                f"prevalences of {', '.join(group)} exclude one another but add up to {total:.3g}. "
                "Lower them to at most 1 in all."
            )
    rates = shares["sinus_bradycardia"] + shares["sinus_tachycardia"]
    if rates > 1 + 1e-9:
        raise UserError(
            f"prevalences of sinus_bradycardia and sinus_tachycardia add up to {rates:.3g}; "
            "at most 1 is possible."
        )
    return shares


def _age_factor(age_years: float) -> float:
    """Return how much likelier a disease of old age is at this age (mean 1 over the patients)."""
    return float(np.exp((age_years - 62.0) / 22.0) / 1.3)


def _one_of(
    rng: np.random.Generator, names: tuple[str, ...], shares: Mapping[str, float], factor: float
) -> str | None:
    """Return one name, each with its share times `factor`, or None."""
    weights = np.array([shares[name] for name in names])
    if (total := weights.sum() * factor) > 1:
        weights = weights / total
    position = int(np.searchsorted(np.cumsum(weights * factor), rng.random(), side="right"))
    return names[position] if position < len(names) else None


@dataclass(frozen=True)
class PatientState:
    """What a patient keeps: anatomy, lasting findings, how often AF is there, pacing mode."""

    anatomy: Anatomy
    lasting: frozenset[str]
    fibrillation_share: float
    pacing: str | None
    resting_rate_bpm: float
    is_child: bool

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        age_years: float,
        is_female: bool,
        shares: Mapping[str, float],
    ) -> "PatientState":
        """Return a patient of this age and sex."""
        anatomy = Anatomy.sample(rng, age_years, is_female)
        factor = _age_factor(age_years)
        chosen = [
            _one_of(rng, _CONDUCTION, shares, factor),
            _one_of(rng, INFARCTS, shares, 1.0),
            _one_of(rng, _SIZE, shares, 1.0),
            _one_of(rng, _AXIS, shares, 1.0),
        ]
        lasting = {name for name in chosen if name}
        lasting |= {name for name in ("lae", "rae") if rng.random() < shares[name]}
        if rng.random() < shares["first_degree_av_block"] * factor:
            lasting.add("first_degree_av_block")
        # Two thirds of all AF is permanent; the rest comes and goes in twice as many patients.
        fibrillation = min(1.0, shares["atrial_fibrillation"] * factor)
        draw = rng.random()
        fibrillation_share = 0.0
        if draw < 2 / 3 * fibrillation:
            fibrillation_share = 1.0
        elif draw < min(1.0, 4 / 3 * fibrillation):
            fibrillation_share = 0.5
        pacing = None
        if rng.random() < min(1.0, shares["paced"] * factor):
            pacing = str(rng.choice(_PACING_MODES, p=_PACING_SHARES))
        return cls(
            anatomy=anatomy,
            lasting=frozenset(_compatible(lasting)),
            fibrillation_share=fibrillation_share,
            pacing=pacing,
            resting_rate_bpm=float(np.clip(rng.normal(76.0, 9.0), 61.0, 98.0)),
            is_child=age_years < 16,
        )


def _compatible(flags: set[str]) -> set[str]:
    """Return the findings without those that another one hides or forbids."""
    if "lbbb" in flags or "wpw" in flags:  # Q waves and voltages mean nothing here.
        flags = flags - {*INFARCTS, *_AXIS, "lvh", "lvh_voltage", "lvh_strain", "rvh", "pulmonary"}
    if flags & _OWN_AXIS:
        flags = flags - set(_AXIS)
    if flags & {"lafb", "lpfb", "rbbb_lafb"}:
        flags = flags - {"inferior_infarct", "inferoposterior_infarct", "rvh", "pulmonary"}
    if flags & {"rvh", "pulmonary"}:
        flags = flags - {"posterior_infarct", "inferoposterior_infarct"}
    if flags & set(INFARCTS):
        flags = flags - {"leftward_axis", "rightward_axis", "low_voltage"}
    return flags


def sample_findings(
    rng: np.random.Generator, patient: PatientState, shares: Mapping[str, float]
) -> Findings:
    """Return what one ECG of a patient shows."""
    lasting = set(patient.lasting)
    repolarisation = _one_of(rng, _REPOLARISATION, shares, 1.0)
    if repolarisation and not lasting & {*_WIDE, "lvh_strain", "rvh"}:
        lasting.add(repolarisation)
    if rng.random() < shares["long_qt"] and not lasting & _WIDE:
        lasting.add("long_qt")
    if patient.pacing:
        # With the QRS paced nothing of the heart's own conduction, axis or scars can be read.
        rhythm = f"paced_{patient.pacing}"
        flags = lasting - {"first_degree_av_block"} if patient.pacing == "atrial" else set()
        if patient.pacing == "ventricular" and patient.fibrillation_share:
            flags = {"atrial_fibrillation"}
        return Findings(rhythm, float(rng.uniform(59.5, 84.0)), frozenset(flags))
    if rng.random() < patient.fibrillation_share:
        flags = lasting - {"first_degree_av_block", "lae", "rae", "pulmonary", "wpw", "short_pr"}
        if rng.random() < shares["pvc"]:
            flags.add("pvc")
        rate = float(np.clip(rng.normal(88.0, 24.0), 42.0, 165.0))
        return Findings("atrial_fibrillation", rate, frozenset(flags))
    episode = _one_of(rng, _EPISODES, shares, 1.0)
    if episode:
        return _episode(rng, episode, lasting)
    return _sinus_findings(rng, patient, lasting, shares)


def _episode(rng: np.random.Generator, episode: str, lasting: set[str]) -> Findings:
    atrial = {"first_degree_av_block", "lae", "rae", "pulmonary", "wpw"}
    low, high = {
        "atrial_flutter": (62.0, 105.0),
        "ectopic_atrial": (55.0, 95.0),
        "junctional": (36.0, 68.0),
        "svt": (150.0, 200.0),
        "vt": (135.0, 190.0),
        "idioventricular": (36.0, 55.0),
        "complete_heart_block": (30.0, 45.0),
        "mobitz_1": (50.0, 70.0),
        "multifocal_atrial": (102.0, 135.0),
    }[episode]
    rate = float(rng.uniform(low, high))
    if episode in ("vt", "idioventricular", "complete_heart_block"):
        return Findings(episode, rate)
    flags = lasting - atrial - {"long_qt"}
    if episode == "atrial_flutter":
        mode = rng.choice(["two_to_one", "variable_av_block", ""], p=[0.4, 0.3, 0.3])
        flags |= {str(mode)} - {""}
        rate = float(rng.uniform(130.0, 155.0)) if mode == "two_to_one" else rate
    if episode == "svt":
        flags -= set(_REPOLARISATION)
    return Findings(episode, rate, frozenset(flags))


def _sinus_findings(
    rng: np.random.Generator,
    patient: PatientState,
    lasting: set[str],
    shares: Mapping[str, float],
) -> Findings:
    draw = rng.random()
    rate = float(np.clip(rng.normal(patient.resting_rate_bpm, 6.0), 60.5, 99.5))
    if draw < shares["sinus_bradycardia"]:
        rate = float(np.clip(rng.normal(53.5, 5.0), 37.0, 59.0))
    elif draw < shares["sinus_bradycardia"] + shares["sinus_tachycardia"]:
        rate = float(np.clip(101.5 + rng.exponential(12.0), 101.5, 155.0))
    flags = set(lasting)
    for name in ("marked_sinus_arrhythmia", "sinus_arrhythmia", "sinus_pause"):
        if rate < 95 and rng.random() < shares[name]:
            flags.add(name)
            break
    if "first_degree_av_block" in flags and rate > 115:
        flags.remove("first_degree_av_block")
    if "first_degree_av_block" not in flags and rng.random() < shares["short_pr"]:
        flags.add("short_pr")
    if "wpw" in flags:
        flags -= {"first_degree_av_block", "short_pr"}
    steady = flags.isdisjoint({"marked_sinus_arrhythmia", "sinus_arrhythmia", "sinus_pause"})
    for name in ("bigeminy", "pvc", "pac"):
        if steady and rng.random() < shares[name]:
            flags.add(name)
            break
    return Findings("sinus", rate, frozenset(flags))


def statements(
    rng: np.random.Generator,
    findings: Findings,
    is_child: bool = False,
    has_previous: bool = False,
    weakened_share: float = 0.25,
) -> tuple[tuple[int, ...], Findings]:
    """Return the codes of one ECG in 12SL order, and the findings with weakened signs marked.

    Quality first, then rhythm, axis and conduction, size, infarct, repolarisation, serial phrases;
    the overall class closes.
    """
    flags = findings.flags
    codes: list[int] = []
    severity = 0

    def say(entry: tuple[tuple[int, ...], int]) -> None:
        nonlocal severity
        codes.extend(entry[0])
        severity = max(severity, entry[1])

    if is_child:
        codes.append(PEDIATRIC)
    if "poor_quality" in flags:
        codes.append(POOR_QUALITY)
    if "arm_leads_reversed" in flags:
        say(((ARM_LEADS_REVERSED,), 3))
    say(_rhythm_codes(rng, findings))
    if {"lae", "rae"} <= flags:
        say(((369,), 3))
    elif flags & {"lae", "rae"}:
        if rng.random() < weakened_share:
            codes.append(POSSIBLE)
        say(((360 if "lae" in flags else 350,), 2))
    for table in (_AXIS_CODES, _CONDUCTION_CODES, _SIZE_CODES):
        for name, entry in table.items():
            if name in flags:
                say(entry)
    if "rvh" in flags and rng.random() < 0.3:
        codes.extend([OR, 411])
    weakened = False
    for name, code in _INFARCT_CODES.items():
        if name in flags:
            weakened = bool(rng.random() < weakened_share)
            if weakened:
                codes.append(CANNOT_RULE_OUT if rng.random() < 0.7 else POSSIBLE)
            say(((code,), 2 if weakened else 3))
            if rng.random() < 0.9:
                codes.append(AGE_UNDETERMINED)
    for name, entry in _REPOLARISATION_CODES.items():
        if name in flags:
            say(entry)
            if name == "pericarditis" and rng.random() < 0.3:
                codes.extend([OR, 1000])
    if "long_qt" in flags:
        say(((1143,), 3))
    for code, share in zip(_UNDRAWN, rng.random(len(_UNDRAWN)), strict=True):
        if share < _UNDRAWN[code]:
            say(((code,), 3))
    codes.extend(_serial_codes(rng, has_previous))
    codes.append(_CLASSES[severity])
    if weakened:
        findings = Findings(findings.rhythm, findings.rate_bpm, flags | {"weakened"})
    return tuple(codes), findings


def _rhythm_codes(rng: np.random.Generator, findings: Findings) -> tuple[tuple[int, ...], int]:
    """Return codes and severity of the rhythm statement with its modifiers."""
    rhythm, rate, flags = findings.rhythm, findings.rate_bpm, findings.flags
    ectopy: list[int] = []
    if "bigeminy" in flags:
        ectopy = [WITH, 231, 234]
    elif "pvc" in flags:
        ectopy = [181] if rhythm == "atrial_fibrillation" and rng.random() < 0.5 else [WITH, 231]
    elif "pac" in flags:
        ectopy = [WITH, 222 if rng.random() < 0.6 else 221]
    if rhythm in _PACED_CODES:
        names = _PACED_CODES[rhythm]
        code = names[0] if rng.random() < 0.6 else names[1]
        return ((161, code) if "atrial_fibrillation" in flags else (code,)), 3
    if rhythm == "sinus":
        return _sinus_codes(rate, flags, ectopy)
    response = [171] if rate > 100 else [172] if rate < 60 else []
    if rhythm == "atrial_fibrillation":
        return (161, *response, *ectopy), 3
    if rhythm == "atrial_flutter":
        modifier = [141] if "two_to_one" in flags else [107] if "variable_av_block" in flags else []
        return (162, *modifier), 3
    if rhythm == "junctional":
        return (34 if rate < 45 else 267,), 3
    if rhythm == "complete_heart_block":
        return (19, 106), 3
    if rhythm == "mobitz_1":
        return (19, 103), 3
    return (_EPISODE_CODES[rhythm],), 3


def _sinus_codes(
    rate: float, flags: frozenset[str], ectopy: list[int]
) -> tuple[tuple[int, ...], int]:
    modifiers: list[int] = []
    severity = 0
    for name, code, weight in (
        ("marked_sinus_arrhythmia", 252, 1),
        ("sinus_arrhythmia", 251, 1),
        ("sinus_pause", 113, 3),
        ("first_degree_av_block", 101, 1),
        ("short_pr", 102, 1),
    ):
        if name in flags:
            modifiers.append(code)
            severity = max(severity, weight)
    if ectopy:
        severity = max(severity, 1)
    if rate < 45:
        base, severity = 24, 3
    elif rate < 60:
        base, severity = 21, max(severity, 1)
    elif rate > 100:
        base, severity = 23, max(severity, 1)
    else:
        base = 19 if {"first_degree_av_block", "short_pr"} & flags or ectopy else 22
    return (base, *modifiers, *ectopy), severity


def _serial_codes(rng: np.random.Generator, has_previous: bool) -> list[int]:
    """Return the comparison with an earlier ECG."""
    if not has_previous:
        return [_NO_PREVIOUS] if rng.random() < 0.3 else []
    draws = rng.random(len(_SERIAL))
    said = [code for code, draw in zip(_SERIAL, draws, strict=True) if draw < _SERIAL[code]]
    codes = [_COMPARED] if said or rng.random() < 0.5 else []
    for code in said:
        # "QT has shortened" stands alone; everything else is somewhere.
        codes.append(code)
        if code not in (1250, 1251):
            codes.append(int(rng.choice(_SERIAL_PLACES)))
    if codes and not said:
        codes.append(_NO_CHANGE)
    return codes

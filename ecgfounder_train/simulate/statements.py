"""What the interpretation of an ECG says: 12SL statement codes in their order.

`statements` gives the sequence a reader would write about some findings, with the connectives and
the class code at the end. The codes of lead reversal are HEEDB's 1672, 1679 and 1595; which cables
each of them means is our guess, and so is 104 for Mobitz II.
"""

import numpy as np

from ecgfounder_train.simulate.events import Findings
from ecgfounder_train.simulate.morphology import INJURIES

NORMAL, OTHERWISE_NORMAL, BORDERLINE, ABNORMAL = 1684, 1687, 1693, 1699
_CLASSES = (NORMAL, OTHERWISE_NORMAL, BORDERLINE, ABNORMAL)
WITH, OR, POSSIBLE, CANNOT_RULE_OUT = 177, 178, 1680, 1682
AGE_UNDETERMINED, ACUTE, ACUTE_MI, STEMI, POOR_QUALITY = 831, 1423, 829, 821, 1673
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
    "ivcb": ((482,), 3),
    "lpfb": ((471,), 3),
    "masked_infarct": ((470, 780, 782), 3),
    "ivcd": ((487,), 2),
    "rbbb_lafb": ((440, 470, 480), 3),
    "rbbb_lpfb": ((440, 471, 480), 3),
    "rsr": ((450,), 2),
    "wpw": ((304,), 3),
}
_SIZE_CODES = {
    "low_voltage": ((410,), 2),
    "lvh_voltage": ((540,), 2),
    "lvh": ((541,), 3),
    "lvh_strain": ((541, 544), 3),
    "lvh_wide": ((541, 543), 3),
    "lvh_wide_strain": ((541, 545), 3),
    "r_avl": ((540, OR, 530), 2),
    "bvh": ((570,), 3),
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
    "inferior_injury": ((950,), 3),
    "anterior_injury": ((930,), 3),
    "lateral_injury": ((940,), 3),
    "anterolateral_injury": ((961,), 3),
    "inferolateral_injury": ((962,), 3),
    "rv_involvement": ((806,), 3),
    "pericarditis": ((901,), 3),
}
_PACED_CODES = {
    "paced_ventricular": (296, 290),
    "paced_atrial": (295, 292),
    "paced_atrial_sensed": (297, 297),
    "paced_dual": (298, 293),
    "paced_biventricular": (289, 289),
    "pacing_failure": (1669, 1669),
}
_REVERSAL_CODES = {
    "arm_leads_reversed": 1672,
    "leg_lead_reversed": 1679,
    "chest_leads_reversed": 1595,
}
_DISTURBANCE_CODES = {
    "bigeminy": (231, 234),
    "pvc": (231,),
    "pvc_fusion": (232,),
    "pac": (222,),
    "aberrancy": (246,),
    "ectopic_complexes": (241,),
    "blocked_pac": (222, 32),
    "junctional_escape": (242,),
    "ventricular_escape": (243,),
    "demand_pacing": (294,),
    "v_paced_complexes": (184,),
    "a_paced_complexes": (183,),
    "av_paced_complexes": (185,),
    "competing_junctional": (174,),
    "fusion": (244,),
    "sinus_capture": (247,),
    "supraventricular_complexes": (188,),
}
_OTHER_WORDS = {
    "left_axis": (371,),
    "right_axis": (381,),
    "rsr": (451,),
    "rbbb_lafb": (478,),
    "rbbb_lpfb": (479,),
}
_BLOCK_CODES = {
    "complete_heart_block": 106,
    "mobitz_1": 103,
    "mobitz_2": 104,
    "av_block_2_to_1": 141,
    "av_dissociation": 108,
}
_EPISODE_CODES = {
    "ectopic_atrial": 64,
    "svt": 271,
    "vt": 248,
    "idioventricular": 238,
    "multifocal_atrial": 280,
    "undetermined": 299,
    "wide_qrs": 237,
    "wide_qrs_tachycardia": 235,
}

# Statements that need an earlier ECG: said of a patient's later ECGs, without any signal.
_SERIAL = {
    1215: 0.024, 1214: 0.022, 1220: 0.019, 1224: 0.016, 1251: 0.015, 1250: 0.014, 1107: 0.010,
    1104: 0.009, 1219: 0.009, 1116: 0.008, 1218: 0.008, 1223: 0.007, 1221: 0.006, 1123: 0.005,
    1122: 0.005, 1203: 0.004, 1201: 0.004, 1105: 0.003, 1106: 0.002, 1124: 0.0015, 1121: 0.001,
    1120: 0.001,
}  # fmt: skip
SERIAL_CODES = frozenset(_SERIAL)
_SERIAL_PLACES = (1450, 1451, 1453, 1454, 1456, 1457, 1459)


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
    if flags & {"poor_quality", "motion", "clipping", "lead_off"}:
        codes.append(POOR_QUALITY)
    for name, code in _REVERSAL_CODES.items():
        if name in flags:
            say(((code,), 3))
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
                say(_reworded(rng, name, entry))
    if "rvh" in flags and rng.random() < 0.3:
        codes.extend([OR, 411])
    weakened = False
    for name, code in _INFARCT_CODES.items():
        if name in flags:
            weakened = bool(rng.random() < weakened_share) and "acute" not in flags
            if weakened:
                codes.append(CANNOT_RULE_OUT if rng.random() < 0.7 else POSSIBLE)
            say(((code,), 2 if weakened else 3))
            if "acute" in flags:
                codes.append(ACUTE)
                if rng.random() < 0.4:
                    codes.append(ACUTE_MI)
            elif rng.random() < 0.9:
                codes.append(AGE_UNDETERMINED)
    for name, entry in _REPOLARISATION_CODES.items():
        if name in flags:
            say(entry)
            if name == "pericarditis" and rng.random() < 0.3:
                codes.extend([OR, 1000])
    if flags & set(INJURIES):
        codes.append(ACUTE_MI if rng.random() < 0.25 else STEMI)
    if "long_qt" in flags:
        say(((1143,), 3))
    codes.extend(_serial_codes(rng, has_previous))
    codes.append(_CLASSES[severity])
    if weakened:
        findings = Findings(findings.rhythm, findings.rate_bpm, flags | {"weakened"})
    return tuple(codes), findings


def _reworded(
    rng: np.random.Generator, name: str, entry: tuple[tuple[int, ...], int]
) -> tuple[tuple[int, ...], int]:
    """Return the codes of a finding, some of them in the other words 12SL has for it."""
    if name in _OTHER_WORDS and rng.random() < 0.25:
        return _OTHER_WORDS[name], entry[1]
    return entry


def _rhythm_codes(rng: np.random.Generator, findings: Findings) -> tuple[tuple[int, ...], int]:
    """Return codes and severity of the rhythm statement with its modifiers."""
    rhythm, rate, flags = findings.rhythm, findings.rate_bpm, findings.flags
    extra: list[int] = []
    for name in sorted(flags & _DISTURBANCE_CODES.keys()):
        extra = [WITH, *_DISTURBANCE_CODES[name]]
    if "pac" in flags and rng.random() < 0.4:
        extra = [WITH, 221]
    if "pvc" in flags and rhythm == "atrial_fibrillation" and rng.random() < 0.5:
        extra = [181]
    if "prolonged_av" in flags:
        extra = [190]
    if rhythm in _PACED_CODES:
        names = _PACED_CODES[rhythm]
        before = (161,) if "atrial_fibrillation" in flags else ()
        return (*before, names[0] if rng.random() < 0.6 else names[1], *extra), 3
    if rhythm == "sinus":
        return _sinus_codes(rate, flags, extra)
    response = [171] if rate > 100 else [172] if rate < 60 else []
    if rhythm == "atrial_fibrillation":
        return (161, *response, *extra), 3
    if rhythm == "atrial_flutter":
        modifier = [141] if "two_to_one" in flags else [107] if "variable_av_block" in flags else []
        return (162, *modifier), 3
    if rhythm == "junctional":
        # The slow one has a name of its own; some readers only say what they do not see.
        code = 34 if rate < 45 else 31 if rng.random() < 0.12 else 267
        return (code, *([WITH, 245] if "retrograde" in flags else [])), 3
    if rhythm in _BLOCK_CODES:
        return (19, _BLOCK_CODES[rhythm]), 3
    return (_EPISODE_CODES[rhythm], *extra), 3


def _sinus_codes(
    rate: float, flags: frozenset[str], ectopy: list[int]
) -> tuple[tuple[int, ...], int]:
    modifiers: list[int] = []
    severity = 0
    for name, code, weight in (
        ("marked_sinus_arrhythmia", 252, 1),
        ("sinus_arrhythmia", 251, 1),
        ("irregular_rhythm", 175, 3),
        ("sinus_pause", 113, 3),
        ("sa_block_1", 112, 3),
        ("sa_block_2", 111, 3),
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
        # "QT has shortened" names no leads; every other change has some.
        codes.append(code)
        if code not in (1250, 1251):
            codes.append(int(rng.choice(_SERIAL_PLACES)))
    if codes and not said:
        codes.append(_NO_CHANGE)
    return codes

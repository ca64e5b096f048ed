"""ECGs with and without a label, and how well its one measurement tells them apart."""

from functools import lru_cache

import numpy as np
from ecg_measurements import FS, LABEL_MEASUREMENTS, measure
from scipy.stats import rankdata

from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.simulate.morphology import INFARCTS
from ecgfounder_train.simulate.patients import PatientState, sample_findings
from ecgfounder_train.simulate.prevalence import (
    AXES,
    CONDUCTION,
    EPISODES,
    REPOLARISATIONS,
    SINUS_DISTURBANCES,
    SIZES,
    prevalences,
)
from ecgfounder_train.simulate.statements import statements
from ecgfounder_train.simulate.waveform import simulate_ecg

VOCABULARY = Vocabulary.load("ecgfounder150")
RHYTHMS = ("atrial_fibrillation", "paced", *EPISODES)
GROUPS = (RHYTHMS, CONDUCTION, AXES, SIZES, INFARCTS, REPOLARISATIONS, SINUS_DISTURBANCES)

# Finding that leads to a label, where its name does not say so; further shares in `MORE`.
FINDINGS: dict[str, tuple[str, ...]] = {
    "SINUS BRADYCARDIA": ("sinus_bradycardia",),
    "MARKED SINUS BRADYCARDIA": ("sinus_bradycardia",),
    "SINUS TACHYCARDIA": ("sinus_tachycardia",),
    "ATRIAL FIBRILLATION": ("atrial_fibrillation",),
    "WITH RAPID VENTRICULAR RESPONSE": ("atrial_fibrillation",),
    "WITH SLOW VENTRICULAR RESPONSE": ("atrial_fibrillation",),
    "ATRIAL FLUTTER": ("atrial_flutter",),
    "WITH 2:1 AV CONDUCTION": ("atrial_flutter",),
    "WITH VARIABLE AV BLOCK": ("atrial_flutter",),
    "LEFT AXIS DEVIATION": ("left_axis",),
    "ABNORMAL LEFT AXIS DEVIATION": ("left_axis",),
    "LEFTWARD AXIS": ("leftward_axis",),
    "RIGHT AXIS DEVIATION": ("right_axis",),
    "ABNORMAL RIGHT AXIS DEVIATION": ("right_axis",),
    "RIGHTWARD AXIS": ("rightward_axis",),
    "RIGHT SUPERIOR AXIS DEVIATION": ("superior_axis",),
    "PREMATURE VENTRICULAR COMPLEXES": ("pvc",),
    "IN A PATTERN OF BIGEMINY": ("bigeminy",),
    "PREMATURE ATRIAL COMPLEXES": ("pac",),
    "PREMATURE SUPRAVENTRICULAR COMPLEXES": ("pac",),
    "PREMATURE ECTOPIC COMPLEXES": ("ectopic_complexes",),
    "WITH PREMATURE VENTRICULAR OR ABERRANTLY CONDUCTED COMPLEXES": ("atrial_fibrillation", "pvc"),
    "PREMATURE VENTRICULAR AND FUSION COMPLEXES": ("pvc_fusion",),
    "ABERRANT CONDUCTION": ("aberrancy",),
    "FUSION COMPLEXES": ("paced", "fusion"),
    "RIGHT BUNDLE BRANCH BLOCK": ("rbbb",),
    "BIFASCICULAR BLOCK": ("rbbb_lafb",),
    "RBBB AND LEFT ANTERIOR FASCICULAR BLOCK": ("rbbb_lafb",),
    "RBBB AND LEFT POSTERIOR FASCICULAR BLOCK": ("rbbb_lpfb",),
    "INCOMPLETE RIGHT BUNDLE BRANCH BLOCK": ("irbbb",),
    "RSR' OR QR PATTERN IN V1 SUGGESTS RIGHT VENTRICULAR CONDUCTION DELAY": ("rsr",),
    "RSR' PATTERN IN V1": ("rsr",),
    "LEFT BUNDLE BRANCH BLOCK": ("lbbb",),
    "INCOMPLETE LEFT BUNDLE BRANCH BLOCK": ("ilbbb",),
    "LEFT ANTERIOR FASCICULAR BLOCK": ("lafb",),
    "LEFT POSTERIOR FASCICULAR BLOCK": ("lpfb",),
    "MASKED BY FASCICULAR BLOCK": ("masked_infarct",),
    "NONSPECIFIC INTRAVENTRICULAR CONDUCTION DELAY": ("ivcd",),
    "NONSPECIFIC INTRAVENTRICULAR BLOCK": ("ivcb",),
    "WOLFF-PARKINSON-WHITE": ("wpw",),
    "LOW VOLTAGE QRS": ("low_voltage",),
    "LEFT VENTRICULAR HYPERTROPHY": ("lvh",),
    "VOLTAGE CRITERIA FOR LEFT VENTRICULAR HYPERTROPHY": ("lvh_voltage",),
    "WITH REPOLARIZATION ABNORMALITY": ("lvh_strain",),
    "WITH QRS WIDENING": ("lvh_wide",),
    "WITH QRS WIDENING AND REPOLARIZATION ABNORMALITY": ("lvh_wide_strain",),
    "R IN AVL": ("r_avl",),
    "RIGHT VENTRICULAR HYPERTROPHY": ("rvh",),
    "BIVENTRICULAR HYPERTROPHY": ("bvh",),
    "PULMONARY DISEASE PATTERN": ("pulmonary",),
    "LEFT ATRIAL ENLARGEMENT": ("lae",),
    "RIGHT ATRIAL ENLARGEMENT": ("rae",),
    "BIATRIAL ENLARGEMENT": ("lae", "rae"),
    "WITH 1ST DEGREE AV BLOCK": ("first_degree_av_block",),
    "WITH SHORT PR": ("short_pr",),
    "WITH PROLONGED AV CONDUCTION": ("ectopic_atrial", "prolonged_av"),
    "PROLONGED QT": ("long_qt",),
    "SEPTAL INFARCT": ("septal_infarct",),
    "ANTEROSEPTAL INFARCT": ("anteroseptal_infarct",),
    "ANTERIOR INFARCT": ("anterior_infarct",),
    "ANTEROLATERAL INFARCT": ("anterolateral_infarct",),
    "LATERAL INFARCT": ("lateral_infarct",),
    "INFERIOR INFARCT": ("inferior_infarct",),
    "INFERIOR-POSTERIOR INFARCT": ("inferoposterior_infarct",),
    "POSTERIOR INFARCT": ("posterior_infarct",),
    "ANTERIOR INJURY PATTERN": ("anterior_injury",),
    "INFERIOR INJURY PATTERN": ("inferior_injury",),
    "LATERAL INJURY PATTERN": ("lateral_injury",),
    "ANTEROLATERAL INJURY PATTERN": ("anterolateral_injury",),
    "INFEROLATERAL INJURY PATTERN": ("inferolateral_injury",),
    "CONSIDER RIGHT VENTRICULAR INVOLVEMENT IN ACUTE INFERIOR INFARCT": ("rv_involvement",),
    "ACUTE MI / STEMI": ("inferior_injury",),
    "ACUTE PERICARDITIS": ("pericarditis",),
    "EARLY REPOLARIZATION": ("early_repolarization",),
    "NONSPECIFIC ST ABNORMALITY": ("st_abnormal",),
    "NONSPECIFIC ST AND T WAVE ABNORMALITY": ("st_t_abnormal",),
    "NONSPECIFIC T WAVE ABNORMALITY": ("t_abnormal",),
    "OR DIGITALIS EFFECT": ("digitalis",),
    "VENTRICULAR-PACED COMPLEXES": ("v_paced_complexes",),
    "ELECTRONIC DEMAND PACING": ("demand_pacing",),
    "AV DUAL-PACED COMPLEXES": ("av_paced_complexes",),
    "ATRIAL-PACED COMPLEXES": ("a_paced_complexes",),
    "SUSPECT UNSPECIFIED PACEMAKER FAILURE": ("pacing_failure",),
    "SUPRAVENTRICULAR COMPLEXES": ("paced", "supraventricular_complexes"),
    "ECTOPIC ATRIAL RHYTHM": ("ectopic_atrial",),
    "JUNCTIONAL RHYTHM": ("junctional",),
    "JUNCTIONAL BRADYCARDIA": ("junctional",),
    "NO P-WAVES FOUND": ("junctional",),
    "SUPRAVENTRICULAR TACHYCARDIA": ("svt",),
    "VENTRICULAR TACHYCARDIA": ("vt",),
    "WIDE QRS TACHYCARDIA": ("wide_qrs_tachycardia",),
    "WIDE QRS RHYTHM": ("wide_qrs",),
    "IDIOVENTRICULAR RHYTHM": ("idioventricular",),
    "WITH COMPLETE HEART BLOCK": ("complete_heart_block",),
    "WITH 2ND DEGREE AV BLOCK MOBITZ I": ("mobitz_1",),
    "MULTIFOCAL ATRIAL TACHYCARDIA": ("multifocal_atrial",),
    "WITH SINUS PAUSE": ("sinus_pause",),
    "WITH 2ND DEGREE SA BLOCK MOBITZ II": ("sa_block_2",),
    "WITH 2ND DEGREE SA BLOCK MOBITZ I": ("sa_block_1",),
    "WITH SINUS ARRHYTHMIA": ("sinus_arrhythmia",),
    "WITH MARKED SINUS ARRHYTHMIA": ("marked_sinus_arrhythmia",),
    "WITH VENTRICULAR ESCAPE COMPLEXES": ("ventricular_escape",),
    "WITH JUNCTIONAL ESCAPE COMPLEXES": ("junctional_escape",),
    "BLOCKED": ("blocked_pac",),
    "WITH A COMPETING JUNCTIONAL PACEMAKER": ("atrial_fibrillation", "competing_junctional"),
    "SINUS/ATRIAL CAPTURE": ("vt", "sinus_capture"),
    "WITH UNDETERMINED RHYTHM IRREGULARITY": ("irregular_rhythm",),
    "WITH AV DISSOCIATION": ("av_dissociation",),
    "WITH RETROGRADE CONDUCTION": ("junctional", "retrograde"),
}
"""Findings to draw for certain when ECGs with a label are wanted; pacing labels need `paced`."""


def forced(names: tuple[str, ...]) -> dict[str, float]:
    """Return shares under which these findings are nearly always there."""
    changes: dict[str, float] = {}
    for name in names:
        for group in GROUPS:
            if name in group:
                changes |= dict.fromkeys(group, 0.0)
        in_sinus = name in (*SINUS_DISTURBANCES, "sinus_bradycardia", "sinus_tachycardia")
        if in_sinus and not set(names) & set(RHYTHMS):
            changes |= dict.fromkeys(RHYTHMS, 0.0)
        if name in ("sinus_bradycardia", "sinus_tachycardia"):
            changes |= {"sinus_bradycardia": 0.0, "sinus_tachycardia": 0.0}
    return changes | dict.fromkeys(names, 1.0)


def draw(rng: np.random.Generator, shares: dict[str, float]) -> tuple[PatientState, object, tuple]:
    """Return a patient, what the ECG shows, and which labels it has."""
    patient = PatientState.sample(
        rng, float(np.clip(rng.normal(61, 18), 16, 100)), rng.random() < 0.5, shares
    )
    findings = sample_findings(rng, patient, shares)
    codes, findings = statements(rng, findings, has_previous=True)
    values, _ = VOCABULARY.encode([str(code) for code in codes])
    return patient, findings, values.astype(bool)


def features_of(rng: np.random.Generator, patient: PatientState, findings: object) -> dict:
    """Return the measurements of a simulated recording."""
    return measure(simulate_ecg(rng, findings, FS, anatomy=patient.anatomy))


@lru_cache(maxsize=2)
def population(count: int, seed: int) -> tuple[list[dict], np.ndarray]:
    """Return measurements and labels of ECGs as they come. Labels: (count, 150)."""
    rng = np.random.default_rng((seed, 0))
    features, labels = [], []
    for _ in range(count):
        patient, findings, values = draw(rng, prevalences())
        features.append(features_of(rng, patient, findings))
        labels.append(values)
    return features, np.array(labels)


def with_label(label: str, count: int, seed: int) -> list[dict]:
    """Return measurements of ECGs that have the label."""
    index = VOCABULARY.labels.index(label)
    rng = np.random.default_rng((seed, 1, index))
    shares = prevalences(forced(FINDINGS.get(label, ("paced",))))
    found: list[dict] = []
    for _ in range(80 * count):
        patient, findings, values = draw(rng, shares)
        if values[index]:
            found.append(features_of(rng, patient, findings))
        if len(found) == count:
            break
    return found


def auroc(positives: list[float], negatives: list[float]) -> float:
    """Return how often a positive is above a negative; ties count half."""
    ranks = rankdata([*positives, *negatives])
    above = ranks[: len(positives)].sum() - len(positives) * (len(positives) + 1) / 2
    return float(above / (len(positives) * len(negatives)))


def aurocs(num_positives: int, num_others: int, seed: int) -> list[tuple[str, str, int, float]]:
    """Return (label, measurement, number of positives, AUROC) of every label with one."""
    others, labels = population(num_others, seed)
    table = []
    for label, (name, value) in LABEL_MEASUREMENTS.items():
        has_it = labels[:, VOCABULARY.labels.index(label)]
        negatives = [value(f) for f, is_so in zip(others, has_it, strict=True) if not is_so]
        positives = [value(f) for f in with_label(label, num_positives, seed)]
        table.append((label, name, len(positives), auroc(positives, negatives)))
    return table

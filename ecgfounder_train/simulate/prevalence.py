"""How often each finding is there, and which of them exclude one another.

Source: the shares follow HEEDB where they are published (AF 9.2 %, sinus rhythm 63 %, bradycardia
11-14 %, tachycardia 11 %, RBBB 5.4-6 %, first degree AV block 5.5-6.5 %); the rest falls off in the
order of ECGFounder's label list, which looks like descending frequency.
"""

from collections.abc import Mapping

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.simulate.morphology import INFARCTS

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
    "undetermined": 0.006,
    "wide_qrs": 0.003,
    "wide_qrs_tachycardia": 0.0015,
    "av_dissociation": 0.0006,
    "mobitz_2": 0.0006,
    "av_block_2_to_1": 0.0006,
    "pacing_failure": 0.001,
    # Share of those with the rhythm it belongs to.
    "fusion": 0.20,
    "supraventricular_complexes": 0.02,
    "sinus_capture": 0.12,
    "retrograde": 0.15,
    "prolonged_av": 0.10,
    "competing_junctional": 0.02,
    # Share of ECGs in sinus rhythm.
    "sinus_bradycardia": 0.145,
    "sinus_tachycardia": 0.130,
    "sinus_arrhythmia": 0.030,
    "marked_sinus_arrhythmia": 0.010,
    "irregular_rhythm": 0.001,
    "sinus_pause": 0.001,
    "sa_block_1": 0.001,
    "sa_block_2": 0.0008,
    "blocked_pac": 0.0012,
    "junctional_escape": 0.001,
    "ventricular_escape": 0.0012,
    "demand_pacing": 0.0012,
    "v_paced_complexes": 0.0018,
    "av_paced_complexes": 0.0008,
    "a_paced_complexes": 0.0006,
    "ectopic_complexes": 0.004,
    "pvc_fusion": 0.002,
    "aberrancy": 0.006,
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
    "ivcb": 0.0015,
    "lpfb": 0.003,
    "rbbb_lpfb": 0.001,
    "masked_infarct": 0.0012,
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
    "lvh_wide": 0.003,
    "lvh_wide_strain": 0.002,
    "r_avl": 0.002,
    "bvh": 0.0008,
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
    # Share of ECGs with an infarct that show it fresh.
    "acute": 0.03,
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
    "rv_involvement": 0.001,
    "pericarditis": 0.002,
    "long_qt": 0.035,
}
"""Expected share of ECGs with a finding, before exclusions between findings."""

CONDUCTION = (
    *("rbbb", "lbbb", "irbbb", "lafb", "ivcd", "rbbb_lafb", "rsr", "ilbbb", "lpfb", "wpw"),
    *("ivcb", "rbbb_lpfb", "masked_infarct"),
)
AXES = ("left_axis", "rightward_axis", "right_axis", "leftward_axis", "superior_axis")
SIZES = (
    *("low_voltage", "lvh_voltage", "lvh", "lvh_strain", "rvh", "pulmonary"),
    *("lvh_wide", "lvh_wide_strain", "r_avl", "bvh"),
)
REPOLARISATIONS = (
    *("t_abnormal", "st_t_abnormal", "st_abnormal", "early_repolarization", "digitalis"),
    *("inferior_injury", "anterior_injury", "lateral_injury", "anterolateral_injury"),
    *("inferolateral_injury", "rv_involvement", "pericarditis"),
)
EPISODES = (
    *("atrial_flutter", "ectopic_atrial", "junctional", "svt", "vt", "idioventricular"),
    *("complete_heart_block", "mobitz_1", "multifocal_atrial", "undetermined", "wide_qrs"),
    *("wide_qrs_tachycardia", "av_dissociation", "mobitz_2", "av_block_2_to_1", "pacing_failure"),
)
SINUS_DISTURBANCES = (
    *("marked_sinus_arrhythmia", "sinus_arrhythmia", "irregular_rhythm", "sinus_pause"),
    *("sa_block_1", "sa_block_2", "blocked_pac", "junctional_escape", "ventricular_escape"),
    *("demand_pacing", "v_paced_complexes", "av_paced_complexes", "a_paced_complexes"),
    *("bigeminy", "pvc_fusion", "ectopic_complexes", "aberrancy", "pvc", "pac"),
)
"""What may disturb sinus rhythm: one of these or none."""


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
    rhythms = ("atrial_fibrillation", "paced", *EPISODES)
    groups = (rhythms, CONDUCTION, AXES, SIZES, INFARCTS, REPOLARISATIONS, SINUS_DISTURBANCES)
    for group in groups:
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

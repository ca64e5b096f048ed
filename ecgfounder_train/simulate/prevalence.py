"""How often each finding is there, and which of them exclude one another.

Source: the shares follow HEEDB where they are published (AF 9.2 %, sinus rhythm 63 %, bradycardia
11-14 %, tachycardia 11 %, RBBB 5.4-6 %, first degree AV block 5.5-6.5 %); the rest falls off in the
order of ECGFounder's label list, which looks like descending frequency.
"""

from collections.abc import Mapping

from ecgfounder_train.core.config import stated_in
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.simulate.morphology import INFARCTS

PREVALENCES: dict[str, float] = {
    name: float(share) for name, share in stated_in("simulate.yaml")["prevalences"].items()
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
            raise UserError(f"prevalences.{name} is {share!r}; a share is between 0 and 1.")
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

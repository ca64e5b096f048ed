"""Who is recorded: what a patient has for life, and what one ECG of theirs shows.

A finding is in the waveform exactly if its statement is in the truth.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.events import Findings
from ecgfounder_train.simulate.morphology import INFARCTS
from ecgfounder_train.simulate.prevalence import (
    AXES,
    CONDUCTION,
    EPISODES,
    REPOLARISATIONS,
    SINUS_DISTURBANCES,
    SIZES,
)

_PACING_MODES = ("ventricular", "atrial_sensed", "dual", "atrial", "biventricular")
_PACING_SHARES = (0.35, 0.24, 0.22, 0.15, 0.04)
_WIDE = frozenset(
    {"lbbb", "rbbb", "rbbb_lafb", "rbbb_lpfb", "ivcd", "ivcb", "wpw", "lvh_wide", "lvh_wide_strain"}
)
_OWN_REPOLARISATION = _WIDE | {"lvh_strain", "rvh", "bvh"}
_FASCICULAR = frozenset({"lafb", "lpfb", "rbbb_lafb", "rbbb_lpfb", "masked_infarct"})
_OWN_AXIS = _FASCICULAR | {"rvh", "pulmonary", "r_avl"}
_FROM_VENTRICLE = ("vt", "idioventricular", "wide_qrs", "wide_qrs_tachycardia")
_AT_ANY_RATE = ("pvc", "pac", "aberrancy", "ectopic_complexes")


def _age_factor(age_years: float) -> float:
    """Return how much likelier a disease of old age is at this age (mean 1 over the patients)."""
    return float(np.exp((age_years - 62.0) / 22.0) / 1.3)


def _one_of(
    rng: np.random.Generator, names: tuple[str, ...], shares: Mapping[str, float], factor: float
) -> str | None:
    """Return one name, each with its share times `factor`, or None."""
    # Plain Python: numpy takes ten times as long for a dozen numbers.
    total = sum(shares[name] for name in names) * factor
    draw = rng.random() * max(1.0, total)
    if draw >= total:
        return None
    for name in names:
        draw -= shares[name] * factor
        if draw < 0:
            return name
    return None


def _first_of(
    rng: np.random.Generator, names: tuple[str, ...], shares: Mapping[str, float]
) -> set[str]:
    """Return the first finding that is there, or none: they do not come together."""
    for name in names:
        if rng.random() < shares[name]:
            return {name}
    return set()


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
            _one_of(rng, CONDUCTION, shares, factor),
            _one_of(rng, INFARCTS, shares, 1.0),
            _one_of(rng, SIZES, shares, 1.0),
            _one_of(rng, AXES, shares, 1.0),
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
            # A child's heart is faster (Rijnbeek et al., Eur Heart J 2001;22:702).
            resting_rate_bpm=float(
                np.clip(rng.normal(76.0 + 2.0 * max(0.0, 16.0 - age_years), 9.0), 61.0, 98.0)
            ),
            is_child=age_years < 16,
        )


def _compatible(flags: set[str]) -> set[str]:
    """Return the findings without those that another one hides or forbids."""
    if "lbbb" in flags or "wpw" in flags:  # Q waves and voltages mean nothing here.
        flags = flags - ({*INFARCTS, *AXES, *SIZES} - {"low_voltage"})
    if "masked_infarct" in flags:
        flags = flags - {*INFARCTS, "low_voltage"}
    if flags & _OWN_AXIS:
        flags = flags - set(AXES)
    if flags & _FASCICULAR:
        flags = flags - {"inferior_infarct", "inferoposterior_infarct", "rvh", "pulmonary", "r_avl"}
    if flags & {"rvh", "pulmonary", "bvh"}:
        flags = flags - {"posterior_infarct", "inferoposterior_infarct"}
    if flags & set(INFARCTS):
        flags = flags - {"leftward_axis", "rightward_axis", "low_voltage"}
    return flags


def sample_findings(
    rng: np.random.Generator, patient: PatientState, shares: Mapping[str, float]
) -> Findings:
    """Return what one ECG of a patient shows."""
    lasting = set(patient.lasting)
    repolarisation = _one_of(rng, REPOLARISATIONS, shares, 1.0)
    if repolarisation and not lasting & _OWN_REPOLARISATION:
        lasting.add(repolarisation)
        if repolarisation == "rv_involvement":  # With an inferior infarct only.
            lasting.add("inferior_injury")
    fresh = lasting & set(INFARCTS) and not lasting & {*_OWN_REPOLARISATION, *REPOLARISATIONS}
    if fresh and rng.random() < shares["acute"]:
        lasting.add("acute")
    if rng.random() < shares["long_qt"] and not lasting & _WIDE:
        lasting.add("long_qt")
    if patient.pacing:
        # With the QRS paced nothing of the heart's own conduction, axis or scars can be read.
        rhythm = f"paced_{patient.pacing}"
        flags = lasting - {"first_degree_av_block"} if patient.pacing == "atrial" else set()
        if patient.pacing == "ventricular":
            flags = {"atrial_fibrillation"} if patient.fibrillation_share else set()
            flags |= _first_of(rng, ("fusion", "supraventricular_complexes"), shares)
        if patient.pacing == "atrial":
            flags |= _first_of(rng, ("prolonged_av",), shares)
        return Findings(rhythm, float(rng.uniform(59.5, 84.0)), frozenset(flags))
    if rng.random() < patient.fibrillation_share:
        flags = lasting - {"first_degree_av_block", "lae", "rae", "pulmonary", "wpw", "short_pr"}
        flags |= _first_of(rng, ("competing_junctional", "aberrancy", "pvc"), shares)
        rate = float(np.clip(rng.normal(88.0, 24.0), 42.0, 165.0))
        return Findings("atrial_fibrillation", rate, frozenset(flags))
    episode = _one_of(rng, EPISODES, shares, 1.0)
    if episode:
        return _episode(rng, episode, lasting, shares)
    return _sinus_findings(rng, patient, lasting, shares)


def _episode(
    rng: np.random.Generator, episode: str, lasting: set[str], shares: Mapping[str, float]
) -> Findings:
    atrial = {"first_degree_av_block", "lae", "rae", "pulmonary", "wpw"}
    low, high = {
        "atrial_flutter": (62.0, 105.0),
        "ectopic_atrial": (55.0, 95.0),
        "junctional": (36.0, 68.0),
        "svt": (150.0, 200.0),
        "vt": (135.0, 190.0),
        "idioventricular": (36.0, 55.0),
        "complete_heart_block": (30.0, 48.0),
        "mobitz_1": (50.0, 70.0),
        "mobitz_2": (42.0, 60.0),
        "av_block_2_to_1": (34.0, 46.0),
        "av_dissociation": (62.0, 85.0),
        "undetermined": (55.0, 110.0),
        "wide_qrs": (58.0, 98.0),
        "wide_qrs_tachycardia": (115.0, 170.0),
        "pacing_failure": (48.0, 90.0),
        "multifocal_atrial": (102.0, 135.0),
    }[episode]
    rate = float(rng.uniform(low, high))
    if episode in _FROM_VENTRICLE:
        within = _first_of(rng, ("sinus_capture", "fusion"), shares) if episode == "vt" else set()
        return Findings(episode, rate, frozenset(within))
    flags = lasting - atrial - {"long_qt"}
    if episode == "junctional":
        flags |= _first_of(rng, ("retrograde",), shares)
    if episode == "ectopic_atrial":
        flags |= _first_of(rng, ("prolonged_av",), shares)
    if episode == "atrial_flutter":
        mode = rng.choice(["two_to_one", "variable_av_block", ""], p=[0.4, 0.3, 0.3])
        flags |= {str(mode)} - {""}
        rate = float(rng.uniform(130.0, 155.0)) if mode == "two_to_one" else rate
    if episode in ("svt", "multifocal_atrial"):
        flags -= {*REPOLARISATIONS, "acute"}
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
    if "first_degree_av_block" in flags and rate > 115:
        flags.remove("first_degree_av_block")
    if "first_degree_av_block" not in flags and rng.random() < shares["short_pr"]:
        flags.add("short_pr")
    if "wpw" in flags:
        flags -= {"first_degree_av_block", "short_pr"}
    disturbance = _one_of(rng, SINUS_DISTURBANCES, shares, 1.0)
    if disturbance and (rate < 95 or disturbance in _AT_ANY_RATE):
        flags.add(disturbance)
    return Findings("sinus", rate, frozenset(flags))

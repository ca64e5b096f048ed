"""Statement cells: order, connectives, class code; findings that fit together."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import rankdata

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.simulate.dictionary import STATEMENTS
from ecgfounder_train.simulate.morphology import INFARCTS
from ecgfounder_train.simulate.patients import PatientState, sample_findings
from ecgfounder_train.simulate.prevalence import PREVALENCES, prevalences
from ecgfounder_train.simulate.rhythm import Findings
from ecgfounder_train.simulate.statements import (
    AGE_UNDETERMINED,
    SERIAL_CODES,
    WEAKENING,
    statements,
)
from ecgfounder_train.simulate.waveform import check_findings

CLASSES = {1684, 1687, 1693, 1699}
INFARCT_CODES = {700, 740, 760, 780, 801, 802, 810, 820}


def drawn(count: int = 400, **changes: float) -> list[tuple[tuple[int, ...], Findings]]:
    rng = np.random.default_rng(0)
    shares = prevalences(changes)
    result = []
    for index in range(count):
        patient = PatientState.sample(rng, float(rng.uniform(20, 90)), index % 2 == 0, shares)
        result.append(statements(rng, sample_findings(rng, patient, shares), has_previous=True))
    return result


def test_every_sequence_closes_with_its_only_class_code() -> None:
    for codes, _ in drawn():
        assert codes[-1] in CLASSES
        assert CLASSES.isdisjoint(codes[:-1])


def test_every_code_is_in_the_dictionary() -> None:
    assert {code for codes, _ in drawn() for code in codes} <= set(STATEMENTS)


def test_everything_drawn_can_be_shown() -> None:
    findings = [item for _, item in drawn()]
    assert len({item.flags for item in findings}) > 10
    for item in findings:
        check_findings(item)  # raises on what no waveform can show


def test_age_undetermined_follows_an_infarct_and_weakening_precedes_a_statement() -> None:
    cells = drawn(1500)
    assert any(AGE_UNDETERMINED in codes for codes, _ in cells)
    for codes, _ in cells:
        for previous, code in pairwise(codes):
            if code == AGE_UNDETERMINED:
                assert previous in INFARCT_CODES
            if previous in WEAKENING:
                assert code in INFARCT_CODES | {350, 360}


def test_poor_quality_comes_first() -> None:
    codes, _ = statements(np.random.default_rng(0), Findings.of("poor_quality", "lbbb"))
    assert codes[0] == 1673


def test_plain_sinus_rhythm_is_a_normal_ecg() -> None:
    rng = np.random.default_rng(0)
    cells = [statements(rng, Findings(), weakened_share=0.0)[0] for _ in range(60)]
    assert sum(codes[0] == 22 and codes[-1] == 1684 for codes in cells) > 50


@pytest.mark.parametrize(
    ("findings", "codes"),
    [
        (Findings("sinus", 40.0), {24}),
        (Findings("sinus", 52.0), {21}),
        (Findings("sinus", 120.0), {23}),
        (Findings("atrial_fibrillation", 120.0), {161, 171}),
        (Findings("atrial_fibrillation", 50.0), {161, 172}),
        (Findings("atrial_flutter", 140.0, frozenset({"two_to_one"})), {162, 141}),
        (Findings.of("rbbb_lafb"), {440, 470, 480}),
        (Findings.of("lae", "rae"), {369}),
        (Findings.of("lvh_strain"), {541, 544}),
    ],
)
def test_findings_are_said_with_their_codes(findings: Findings, codes: set[int]) -> None:
    assert codes <= set(statements(np.random.default_rng(0), findings)[0])


def test_a_weakened_infarct_has_a_weaker_sign() -> None:
    codes, findings = statements(
        np.random.default_rng(0), Findings.of("inferior_infarct"), weakened_share=1.0
    )
    assert WEAKENING & set(codes)
    assert "weakened" in findings.flags


def test_bundle_branch_block_hides_infarcts() -> None:
    for _, findings in drawn(300, lbbb=1.0, **dict.fromkeys(_OTHER_CONDUCTION, 0.0)):
        if "lbbb" in findings.flags:
            assert findings.flags.isdisjoint(INFARCTS)


_OTHER_CONDUCTION = (
    *("rbbb", "irbbb", "lafb", "ivcd", "rbbb_lafb", "rsr", "ilbbb", "lpfb", "wpw"),
    *("ivcb", "rbbb_lpfb", "masked_infarct"),
)


@pytest.mark.parametrize("name", ["atrial_fibrillation", "sinus_bradycardia", "lbbb", "pvc"])
def test_a_share_of_zero_means_never(name: str) -> None:
    for _, findings in drawn(300, **{name: 0.0}):
        assert name not in findings.flags | {findings.rhythm}
        if name == "sinus_bradycardia" and findings.rhythm == "sinus":
            assert findings.rate_bpm >= 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lbb": 0.1}, "lbbb"),
        ({"lbbb": 1.2}, "between 0 and 1"),
        ({"lbbb": 0.9, "rbbb": 0.9}, "add up"),
        ({"sinus_bradycardia": 0.6, "sinus_tachycardia": 0.6}, "add up"),
    ],
)
def test_impossible_prevalences_are_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prevalences(changes)


def test_default_prevalences_are_possible() -> None:
    assert prevalences() == PREVALENCES


def test_serial_statements_do_not_depend_on_what_the_ecg_shows() -> None:
    """Each frequent one alone, by rate and by every frequent finding: AUROC 0.4 to 0.6."""
    rng = np.random.default_rng(0)
    shares = prevalences()
    patients = [
        PatientState.sample(rng, float(rng.uniform(20, 90)), False, shares) for _ in range(300)
    ]
    cells = []
    for index in range(9000):
        findings = sample_findings(rng, patients[index % 300], shares)
        codes, _ = statements(rng, findings, has_previous=True)
        cells.append((set(codes), findings))
    rates = rankdata([findings.rate_bpm for _, findings in cells])
    tested = 0
    for code in SERIAL_CODES:
        said = np.array([code in codes for codes, _ in cells])
        count = int(said.sum())
        if count < 100:
            continue
        tested += 1
        above = (rates[said].sum() - count * (count + 1) / 2) / (count * (len(cells) - count))
        assert 0.4 < above < 0.6, code
        for flag in ("t_abnormal", "lvh_voltage", "st_abnormal", "pvc"):
            shown = np.array([flag in findings.flags for _, findings in cells])
            # AUROC of a yes-or-no measurement.
            assert 0.4 < 0.5 + (shown[said].mean() - shown[~said].mean()) / 2 < 0.6, (code, flag)
    assert tested >= 5

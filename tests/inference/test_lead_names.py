"""Leads are found by any device's names; what is missing, derived or turned is said."""

import input_files as files
import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError
from ecgfounder_train.inference.leads import device_lead, resolve_leads
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord

ECG = files.heartbeat()


def record(*names: str, rows: tuple[str, ...] | None = None) -> EcgRecord:
    chosen = [STANDARD_LEADS.index(row) for row in (rows or STANDARD_LEADS)]
    return EcgRecord(ECG[chosen], names, 500.0)


@pytest.mark.parametrize(
    ("written", "lead"),
    [
        ("MDC_ECG_LEAD_I", "I"),
        ("MDC_ECG_LEAD_AVR", "aVR"),
        ("Lead II", "II"),
        ("Lead I (Einthoven)", "I"),
        ("aVF [mV]", "aVF"),
        ("AVL", "aVL"),
        ("DIII", "III"),
        ("ecg_v4", "V4"),
        ("C6", "V6"),
        ("Ableitung V1", "V1"),
        ("\u2212aVR", "-aVR"),
        ("-avr", "-aVR"),
        ("MLII", "MLII"),
        ("V", "V"),
        ("Pleth", "Pleth"),
    ],
)
def test_spellings_of_devices_are_understood(written: str, lead: str) -> None:
    assert device_lead(written) == lead


def test_other_spellings_are_named_and_the_same_letters_are_not() -> None:
    plain, said = resolve_leads(record(*(name.lower() for name in STANDARD_LEADS)), STANDARD_LEADS)
    assert not said and plain.lead_names == STANDARD_LEADS
    coded, said = resolve_leads(
        record(*(f"MDC_ECG_LEAD_{name.upper()}" for name in STANDARD_LEADS)), STANDARD_LEADS
    )
    np.testing.assert_array_equal(coded.signal, ECG)
    assert [item.code for item in said] == ["leads_renamed"]
    assert "MDC_ECG_LEAD_AVR is aVR" in said[0].detail


def test_limb_leads_are_derived_and_said_or_left_alone() -> None:
    eight = ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6")
    resolved, said = resolve_leads(record(*eight, rows=eight), STANDARD_LEADS)
    np.testing.assert_allclose(resolved.signal, ECG, atol=2e-3)
    assert [item.code for item in said] == ["leads_derived"]
    assert said[0].detail == "III, aVR, aVL, aVF computed from I and II"
    with pytest.raises(RejectedRecordError, match=r"derive_leads=true computes III, aVR, aVL, aVF"):
        resolve_leads(record(*eight, rows=eight), STANDARD_LEADS, derive=False)


def test_missing_leads_are_listed_beside_what_is_there() -> None:
    few = ("I", "II", "V2")
    with pytest.raises(RejectedRecordError) as error:
        resolve_leads(record(*few, rows=few), STANDARD_LEADS)
    assert "no lead V1, V3, V4, V5, V6 among the 3 stored (I, II, V2)" in str(error.value)
    numbered = tuple(str(number) for number in range(12))
    with pytest.raises(RejectedRecordError, match="input_leads"):
        resolve_leads(record(*numbered), STANDARD_LEADS)


def test_an_inverted_avr_is_turned_and_said() -> None:
    names = ["-aVR" if name == "aVR" else name for name in STANDARD_LEADS]
    turned, said = resolve_leads(record(*names), STANDARD_LEADS)
    np.testing.assert_array_equal(turned.signal[3], -ECG[3])
    assert [item.code for item in said] == ["lead_inverted"]


def test_aliases_of_the_profile_count_only_where_the_lead_is_not_there() -> None:
    aliases = {"ECG": "I"}
    resolved, said = resolve_leads(record("ECG", rows=("II",)), ("I",), aliases)
    np.testing.assert_array_equal(resolved.signal[0], ECG[1])
    assert said[0].detail == "ECG is I"
    both, _ = resolve_leads(record("ECG", "I", rows=("II", "I")), ("I",), aliases)
    np.testing.assert_array_equal(both.signal[0], ECG[0])
    with pytest.raises(RejectedRecordError, match="duplicate_leads"):
        resolve_leads(record("I", "Lead I", rows=("I", "II")), ("I",))

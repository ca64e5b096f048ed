"""to_standard_leads: by name, in order, and derived only on request."""

import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord, canonical_lead

rng = np.random.default_rng(3)


def record_of(*names: str) -> EcgRecord:
    return EcgRecord(rng.normal(size=(len(names), 30)).astype(np.float32), names, 500.0)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("avr", "aVR"), ("AVL", "aVL"), (" v6 ", "V6"), ("i", "I"), ("Lead II", "II"),
        ("LEAD_aVF", "aVF"), ("ECG V1", "V1"), ("ECG lead III", "III"), ("DII", "II"),
        ("D1", "I"), ("C4", "V4"),
        # not the same leads, whatever they look like
        ("MLII", "MLII"), ("-aVR", "-aVR"), ("V", "V"), ("ECG", "ECG"), ("II+", "II+"),
        ("vx", "vx"), ("", ""),
    ],
)  # fmt: skip
def test_lead_names_are_understood_but_not_guessed(written, meant):
    assert canonical_lead(written) == meant


def test_leads_are_found_by_name_in_any_case_and_order():
    names = ("V6", "v5", "V4", "V3", "V2", "V1", "AVF", "avl", "aVR", "iii", "II", "I", "MLII")
    record = record_of(*names)
    standard = record.to_standard_leads()
    assert standard.lead_names == STANDARD_LEADS
    np.testing.assert_array_equal(standard.signal, record.signal[11::-1])
    assert standard.derived_leads == ()


def test_absent_leads_are_named_and_not_derived_unless_asked():
    with pytest.raises(RejectedRecordError, match="aVR, aVL") as error:
        record_of("I", "II", "III").to_standard_leads(("I", "aVR", "aVL"))
    assert error.value.reason == RejectReason.MISSING_LEADS


def test_a_wanted_lead_stored_twice_is_rejected_and_an_unwanted_one_is_not():
    record = record_of("I", "ii", "II", "V1")
    assert record.to_standard_leads(("V1", "I")).signal.shape == (2, 30)
    with pytest.raises(RejectedRecordError) as error:
        record.to_standard_leads(("I", "II"))
    assert error.value.reason == RejectReason.DUPLICATE_LEADS


LIMB = ("I", "II", "III", "aVR", "aVL", "aVF")


@pytest.mark.parametrize("pair", [(a, b) for a in LIMB for b in LIMB if a < b])
def test_any_two_limb_leads_give_the_other_four(pair):
    one, two = rng.normal(size=(2, 40))
    truth = {
        "I": one, "II": two, "III": two - one,
        "aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2,
    }  # fmt: skip
    record = EcgRecord(np.stack([truth[name] for name in pair]).astype(np.float32), pair, 500.0)
    full = record.to_standard_leads(LIMB, derive=True)
    np.testing.assert_allclose(full.signal, np.stack([truth[n] for n in LIMB]), atol=2e-6)
    assert set(full.derived_leads) == set(LIMB) - set(pair)


def test_chest_leads_and_lone_limb_leads_derive_nothing():
    with pytest.raises(RejectedRecordError):
        record_of("I", "V1").to_standard_leads(("I", "II"), derive=True)
    with pytest.raises(RejectedRecordError):
        record_of("I", "II").to_standard_leads(("I", "V1"), derive=True)


def test_a_missing_sample_stays_missing_in_what_is_derived_from_it():
    record = record_of("I", "II")
    record.signal[0, 4] = np.nan
    derived = record.to_standard_leads(("III",), derive=True)
    assert np.flatnonzero(np.isnan(derived.signal[0])).tolist() == [4]


def test_an_alias_names_what_only_the_documentation_knows_and_overrides_nothing():
    alias = {"ecg": "I"}
    assert record_of("ECG").to_standard_leads(("I",), aliases=alias).lead_names == ("I",)
    both = record_of("ECG", "I")
    chosen = both.to_standard_leads(("I",), aliases=alias)
    np.testing.assert_array_equal(chosen.signal[0], both.signal[1])
    with pytest.raises(RejectedRecordError):
        record_of("ECG").to_standard_leads(("I",))

"""What a person would notice on the strip is said, and a clean recording is left in peace."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import input_files as files
import numpy as np
import pytest
import tiny_set as tiny
import yaml

from ecgfounder_train.core.errors import RejectedRecordError
from ecgfounder_train.inference import find_records
from ecgfounder_train.inference.checks import check_signal, check_windows, unit_hint
from ecgfounder_train.inference.leads import resolve_leads
from ecgfounder_train.records import STANDARD_LEADS, EcgRecord, SignalProfile

OFFICIAL = SignalProfile.from_config(
    yaml.safe_load((tiny.REPOSITORY / "configs" / "signal" / "official.yaml").read_text())
)
RNG = np.random.default_rng(3)


@pytest.fixture
def ecg() -> EcgRecord:
    noise = RNG.normal(0, 0.01, (2, 5000)).astype(np.float32)
    one, two = files.heartbeat()[:2] + noise
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    chest = files.heartbeat()[6:] + RNG.normal(0, 0.01, (6, 5000))
    signal = np.concatenate([np.stack(limbs), chest]).astype(np.float32)
    return EcgRecord(signal, STANDARD_LEADS, 500.0)


def said(record: EcgRecord, profile: SignalProfile = OFFICIAL) -> dict[str, str]:
    return {remark.code.value: remark.detail for remark in check_signal(record, profile)}


def changed(record: EcgRecord, **leads: Any) -> EcgRecord:
    signal = record.signal.copy()
    for name, values in leads.items():
        signal[STANDARD_LEADS.index(name)] = values
    return replace(record, signal=signal)


def lead(record: EcgRecord, name: str) -> np.ndarray:
    return record.signal[STANDARD_LEADS.index(name)]


def test_a_clean_recording_is_left_in_peace(ecg: EcgRecord) -> None:
    assert said(ecg) == {}


@pytest.mark.parametrize(
    ("factor", "unit"), [(1000.0, "uV"), (1e-3, "V"), (1e6, "nV"), (200.0, None), (0.02, None)]
)
def test_mixed_up_units_are_recognised(ecg: EcgRecord, factor: float, unit: str | None) -> None:
    text = said(replace(ecg, signal=ecg.signal * np.float32(factor)))["unit_suspect"]
    if unit is None:
        assert "raw values of a converter" in text
    else:
        assert f"input_unit={unit}" in text


def test_small_and_large_hearts_are_no_unit_mistake() -> None:
    for size in (0.15, 3.0):
        record = EcgRecord(files.heartbeat(size_mv=size), STANDARD_LEADS, 500.0)
        assert "unit_suspect" not in said(record), size
    assert unit_hint(1200.0) == "input_unit=uV would make that 1.2 mV"


def test_a_flat_lead_and_a_pause_of_all_leads_are_told_apart(ecg: EcgRecord) -> None:
    still = lead(ecg, "V3").copy()
    still[1000:2000] = still[1000]
    assert said(changed(ecg, V3=still)) == {"flat_lead": "V3 flat for 1 s or more"}
    signal = ecg.signal.copy()
    signal[:, 1000:2000] = 0
    assert said(replace(ecg, signal=signal)) == {"gap": "no lead changes for 2.0 s"}


def test_clipping_is_named_with_its_limit_and_a_plateau_of_one_beat_is_none(
    ecg: EcgRecord,
) -> None:
    clipped = np.minimum(lead(ecg, "V4"), 0.6)
    assert said(changed(ecg, V4=clipped))["clipped"].endswith("V4 at 0.6 mV")
    once = lead(ecg, "V4").copy()
    once[2000:2010] = once.max() + 0.1
    assert "clipped" not in said(changed(ecg, V4=once))


@pytest.mark.parametrize("hertz", [50, 60])
def test_hum_is_told_by_its_frequency(ecg: EcgRecord, hertz: int) -> None:
    time = np.arange(5000) / 500
    hum = 0.15 * np.sin(2 * np.pi * hertz * time)
    found = said(changed(ecg, V2=lead(ecg, "V2") + hum))
    assert set(found) == {f"mains_{hertz}hz"} and "V2" in found[f"mains_{hertz}hz"]


def test_low_sampling_rates_are_judged_by_what_the_profile_keeps(ecg: EcgRecord) -> None:
    slow = replace(ecg, signal=ecg.signal[:, ::10], fs=50.0)
    assert "nothing above 25 Hz" in said(slow)["low_sampling_rate"]
    half = replace(ecg, signal=ecg.signal[:, ::2], fs=250.0)
    assert "low_sampling_rate" not in said(half)
    with_fs = SignalProfile.from_config({**OFFICIAL.to_dict(), "fs": 40, "filter_fs": 200})
    assert "low_sampling_rate" not in said(slow, with_fs)


def test_leads_that_changed_names_are_found_out(ecg: EcgRecord) -> None:
    swapped = changed(ecg, II=lead(ecg, "III"), III=lead(ecg, "II"))
    assert "II and III changed names" in said(swapped)["limb_leads_inconsistent"]
    turned = changed(ecg, aVF=-lead(ecg, "aVF"))
    assert "aVF were turned over" in said(turned)["limb_leads_inconsistent"]
    gains = changed(ecg, III=0.6 * lead(ecg, "III"), aVF=1.5 * lead(ecg, "aVF"))
    assert "each lead had a gain of its own" in said(gains)["limb_leads_inconsistent"]
    wild = changed(ecg, III=RNG.normal(0, 0.3, 5000))
    assert said(wild)["limb_leads_inconsistent"].endswith("%)")


def test_exchanged_arm_electrodes_are_suspected(ecg: EcgRecord) -> None:
    one, two, three = (lead(ecg, name) for name in ("I", "II", "III"))
    avr, avl = lead(ecg, "aVR"), lead(ecg, "aVL")
    reversed_arms = changed(ecg, I=-one, II=three, III=two, aVR=avl, aVL=avr)
    reversed_arms = changed(reversed_arms, aVR=-(-one + three) / 2, aVL=-one - three / 2)
    found = said(reversed_arms)
    assert "limb_leads_inconsistent" not in found

    v6 = lead(ecg, "V6")
    plain = changed(ecg, I=-0.8 * v6, II=0.1 * v6, III=0.9 * v6, aVR=0.35 * v6, aVL=-0.85 * v6,
                    aVF=0.5 * v6)  # fmt: skip
    assert "right and left arm" in said(plain)["arm_reversal_suspected"]


def test_what_the_profile_had_to_do_is_said(ecg: EcgRecord) -> None:
    def windows_said(record: EcgRecord) -> set[str]:
        profiled = OFFICIAL.apply(record)
        return {remark.code.value for remark in check_windows(record, profiled, OFFICIAL)}

    assert windows_said(ecg) == set()
    assert windows_said(replace(ecg, signal=ecg.signal[:, :3000])) == {"padded"}
    longer = np.concatenate([ecg.signal, ecg.signal[:, :2000]], axis=1)
    assert windows_said(replace(ecg, signal=longer)) == {"cropped"}
    gap = ecg.signal.copy()
    gap[3, 100:110] = np.nan
    assert windows_said(replace(ecg, signal=gap)) == {"interpolated"}


@pytest.mark.real_data
def test_few_recordings_of_open_data_sets_are_called_out(real_data: Path) -> None:
    for folder, most in (("ptbxl500", 0), ("cinc2021", 4)):
        called = 0
        for reference in find_records(str(real_data / folder)).records:
            try:
                record, _ = resolve_leads(reference.read().record, STANDARD_LEADS)
            except RejectedRecordError:
                continue
            called += bool(said(record))
        assert called <= most, folder


@pytest.mark.real_data
def test_ludb_is_caught_at_its_gains(real_data: Path) -> None:
    # Each lead of LUDB was stretched to the range of its numbers; its headers do not undo all.
    found = []
    for reference in find_records(str(real_data / "ludb")).records:
        record, _ = resolve_leads(reference.read().record, STANDARD_LEADS)
        found.append(said(record).get("limb_leads_inconsistent", ""))
    assert sum("gain of its own" in text for text in found) > 30

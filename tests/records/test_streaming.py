"""Long recordings, read and filtered piece by piece: the same windows as the whole, in bounds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import EcgRecord, SignalProfile, streaming
from ecgfounder_train.records.leads import STANDARD_LEADS
from ecgfounder_train.records.streaming import stream_windows

LEADS = ("I", "II", "V5")


@dataclass
class InMemory:
    """A recording that counts how much of it is asked for at once."""

    record: EcgRecord
    most: int = 0

    @property
    def fs(self) -> float:
        return self.record.fs

    @property
    def num_samples(self) -> int:
        return self.record.signal.shape[1]

    @property
    def comments(self) -> tuple[str, ...]:
        return ()

    def read(self, start: int = 0, stop: int | None = None) -> EcgRecord:
        part = self.record.signal[:, start:stop]
        self.most = max(self.most, part.shape[1])
        return EcgRecord(part, self.record.lead_names, self.record.fs)


def recording(make_ecg: Any, duration_s: float, fs: float, seed: int = 0) -> InMemory:
    signal = make_ecg(len(LEADS), duration_s, fs, seed).astype(np.float32)
    return InMemory(EcgRecord(signal, LEADS, fs))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_PIECE_VALUES", 4 * 10 * 500 * len(LEADS))


@pytest.mark.parametrize("name", ["paper", "author", "official", "zscore"])
@pytest.mark.parametrize("fs", [500.0, 1000.0, 250.0, 360.0, 128.0, 62.5, 977.0, 512.82])
def test_every_window_equals_that_of_the_whole_recording(
    make_ecg: Any, profile_config: Callable[..., dict[str, Any]], name: str, fs: float
) -> None:
    windows = {"policy": "consecutive", "tail": "pad", "pad": "end", "min_duration_s": 2.0}
    config = profile_config(name, leads=list(LEADS), windows=windows, lead_aliases={})
    profile = SignalProfile.from_config(config)
    source = recording(make_ecg, 333.4, fs)
    expected = profile.apply(source.record)
    stream = stream_windows(profile, source)
    found = list(stream.windows)
    assert [window.number for window in found] == list(range(34))
    assert stream.dropped_stages == expected.dropped_stages
    assert source.most < source.num_samples
    for one, other in zip(found, expected.windows, strict=True):
        assert (one.valid_start, one.valid_num_samples) == (
            other.valid_start,
            other.valid_num_samples,
        )
        assert np.abs(one.ecg.astype(int) - other.ecg).max() <= 1
        if name == "paper":  # its statistics are each window's own, others the recording's
            np.testing.assert_allclose(one.stats, other.stats, atol=1e-4)


@pytest.mark.parametrize("policy", ["first", "centre"])
def test_one_window_of_a_long_recording_costs_one_piece(
    make_ecg: Any, profile_config: Callable[..., dict[str, Any]], policy: str
) -> None:
    config = profile_config("paper", leads=list(LEADS), lead_aliases={})
    config["windows"] = {**config["windows"], "policy": policy}
    profile = SignalProfile.from_config(config)
    source = recording(make_ecg, 900, 500)
    (window,) = stream_windows(profile, source).windows
    (expected,) = profile.apply(source.record).windows
    assert np.abs(window.ecg.astype(int) - expected.ecg).max() <= 1
    assert source.most < 200 * 500


def test_windows_beyond_the_limits_are_left_out_and_counted(
    make_ecg: Any, profile_config: Callable[..., dict[str, Any]]
) -> None:
    profile = SignalProfile.from_config(profile_config("zscore", leads=list(LEADS)))
    profile.windows["policy"] = "consecutive"
    source = recording(make_ecg, 200, 500)
    signal = source.record.signal
    signal[1, 20 * 500 : 31 * 500] = np.nan  # windows 2 and 3 lack more than 1 %
    signal[0, 50 * 500 : 60 * 500] = 0.4  # a flat lead in window 5
    signal[2, 75 * 500] = 300.0  # an artefact in window 7
    signal[:, 90 * 500 : 100 * 500] = 0
    stream = stream_windows(profile, source)
    numbers = [window.number for window in stream.windows]
    assert numbers == [0, 1, 4, 6, 8, *range(10, 20)]
    assert stream.left_out == {
        "missing_samples": 2,
        "constant_lead": 1,
        "amplitude_beyond_limit": 1,
        "all_zero": 1,
    }
    assert stream.num_planned == 20


def test_a_recording_without_any_good_window_is_rejected_with_all_reasons(
    make_ecg: Any, profile_config: Callable[..., dict[str, Any]]
) -> None:
    profile = SignalProfile.from_config(profile_config("paper", leads=list(LEADS)))
    source = recording(make_ecg, 100, 500)
    source.record.signal[0] = np.nan
    source.record.signal[:, 0] = 0
    with pytest.raises(RejectedRecordError, match="no window of 10 is left") as caught:
        list(stream_windows(profile, source).windows)
    assert caught.value.reason is RejectReason.MISSING_SAMPLES


def test_what_no_window_can_heal_is_rejected_before_any_is_made(
    make_ecg: Any, profile_config: Callable[..., dict[str, Any]]
) -> None:
    source = recording(make_ecg, 100, 500)
    for settings, reason in [
        ({"leads": list(STANDARD_LEADS)}, "missing_leads"),
        ({"leads": list(LEADS), "limits": {"min_fs": 600.0}}, "bad_sampling_rate"),
    ]:
        profile = SignalProfile.from_config(profile_config("paper", **settings))
        with pytest.raises(RejectedRecordError) as caught:
            stream_windows(profile, source)
        assert caught.value.reason.value == reason


def test_the_share_done_is_told_and_ends_at_one(
    make_ecg: Any, profile_config: Callable[..., dict[str, Any]]
) -> None:
    profile = SignalProfile.from_config(profile_config("paper", leads=list(LEADS)))
    shares: list[float] = []
    list(stream_windows(profile, recording(make_ecg, 200, 500), None, shares.append).windows)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert len(shares) == 5


def test_a_day_of_one_lead_in_segments_becomes_windows_with_its_gap(
    tmp_path: Path, make_ecg: Any, profile_config: Callable[..., dict[str, Any]]
) -> None:
    from ecgfounder_train.records.reader import open_record

    half_hour = (make_ecg(1, 600, 250) * 1000).astype("<i2")
    (tmp_path / "h.dat").write_bytes(half_hour.tobytes())
    (tmp_path / "h.hea").write_text("h 1 250 150000\nh.dat 16 1000/mV 16 0 0 0 0 II\n")
    lines = ["day/7 1 250 760000", "h 150000", "h 150000", "~ 10000", *["h 150000"] * 3, "~ 0"]
    (tmp_path / "day.hea").write_text("\n".join(lines))
    config = profile_config("paper", leads=["II"], fs=250, filter_fs=250, lead_aliases={})
    stream = stream_windows(SignalProfile.from_config(config), open_record(tmp_path / "day"))
    numbers = [window.number for window in stream.windows]
    assert numbers == [number for number in range(304) if number not in range(120, 124)]
    assert stream.left_out == {"missing_samples": 4}

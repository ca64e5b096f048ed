"""Signal profiles: the published numbers, the right statistics, and a reason for every reject."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import signal as sps

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.records import (
    STANDARD_LEADS,
    EcgRecord,
    LoadNormalisation,
    SignalProfile,
    normalise,
    read_record,
)
from ecgfounder_train.records.filters import resample_linear, resample_polyphase

PROFILES = ("paper", "author", "official", "zscore")


def as_record(ecg: np.ndarray, fs: float = 500.0, names=STANDARD_LEADS) -> EcgRecord:
    return EcgRecord(ecg.astype(np.float32), tuple(names[: len(ecg)]), fs)


def load(window, profile) -> np.ndarray:
    """The network's input, valid part only."""
    start, length = window.valid_start, window.valid_num_samples
    out = normalise(window.ecg, window.stats, start, length, profile.load_normalisation)
    assert out.shape == profile.shape
    assert not out[:, :start].any()
    assert not out[:, start + length :].any()
    return out[:, start : start + length]


def published_official_filter(ecg: np.ndarray, fs: float = 500.0) -> np.ndarray:
    """The released filter function's arithmetic, written anew, one lead at a time."""
    b_notch, a_notch = sps.iirnotch(50, 30, fs)
    b_band, a_band = sps.butter(4, [0.67, 40], btype="bandpass", fs=fs)
    rows = []
    for lead in ecg:
        filtered = sps.filtfilt(b_band, a_band, sps.filtfilt(b_notch, a_notch, lead))
        rows.append(filtered - sps.medfilt(filtered, 201))
    return np.stack(rows)


def joint_z_score(ecg: np.ndarray) -> np.ndarray:
    return (ecg - ecg.mean()) / (ecg.std() + 1e-8)


def official_errors(record: EcgRecord, profile: SignalProfile) -> tuple[float, float]:
    """Return the largest differences: of the stored window in microvolt, of the z-score in LSB."""
    filtered = published_official_filter(record.signal.astype(np.float64))
    (window,) = profile.apply(record).windows
    lsb = 0.001 / filtered.std()
    z_score = np.abs(load(window, profile) - joint_z_score(filtered)).max() / lsb
    return float(np.abs(window.ecg - 1000 * filtered).max()), float(z_score)


WITHIN_ROUNDING = (0.501, 1.0)
"""To 1 microvolt, and what that is of a z-score."""


def test_official_filter_and_z_score_equal_the_published_functions(profile_config, make_ecg):
    profile = SignalProfile.from_config(profile_config("official"))
    for seed in range(3):
        errors = official_errors(as_record(make_ecg(seed=seed)), profile)
        assert (np.array(errors) <= WITHIN_ROUNDING).all(), errors


@pytest.mark.real_data
def test_official_equals_the_published_functions_on_real_recordings(real_data, profile_config):
    profile = SignalProfile.from_config(profile_config("official"))
    paths = sorted((real_data / "ptbxl500").rglob("*.hea"))[::10]
    assert len(paths) > 5
    for path in paths:
        errors = official_errors(read_record(path).to_standard_leads(), profile)
        assert (np.array(errors) <= WITHIN_ROUNDING).all(), (path.name, errors)


def test_zscore_equals_the_plain_z_score_of_the_record(profile_config, make_ecg):
    profile = SignalProfile.from_config(profile_config("zscore"))
    ecg = make_ecg()
    (window,) = profile.apply(as_record(ecg)).windows
    assert np.abs(load(window, profile) - joint_z_score(ecg)).max() <= 0.001 / ecg.std()


@pytest.mark.parametrize("leads", [STANDARD_LEADS, ("I",), ("V2", "II")])
@pytest.mark.parametrize("duration_s", [10, 7.3, 14])
def test_author_divides_by_the_raw_statistics_also_when_padded_or_cropped(
    profile_config, make_ecg, leads, duration_s
):
    """Published order (normalise, then filter) and ours (filter, divide at load) must agree."""
    profile = SignalProfile.from_config(profile_config("author", leads=list(leads)))
    ecg = make_ecg(duration_s=duration_s)
    (window,) = profile.apply(as_record(ecg)).windows

    chosen = ecg.astype(np.float32).astype(float)[[STANDARD_LEADS.index(lead) for lead in leads]]
    wanted = joint_z_score(chosen)
    wanted = sps.filtfilt(*sps.iirnotch(60, 30, 500), wanted)
    wanted = sps.filtfilt(*sps.butter(2, 0.5, "highpass", fs=500), wanted)
    taps = sps.firwin(133, 56.25, fs=500)
    reflected = np.pad(wanted, ((0, 0), (66, 66)), "reflect", reflect_type="odd")
    wanted = np.stack([np.convolve(row, taps, "valid") for row in reflected])
    start = max((wanted.shape[1] - 5000) // 2, 0)
    wanted = wanted[:, start : start + 5000]
    assert np.abs(load(window, profile) - wanted).max() <= 0.001 / chosen.std()


def test_author_serves_a_single_lead_chosen_after_the_build(profile_config, make_ecg):
    twelve = SignalProfile.from_config(profile_config("author"))
    one = SignalProfile.from_config(profile_config("author", leads=["aVF"]))
    record = as_record(make_ecg(duration_s=8))
    window, direct = twelve.apply(record).windows[0], one.apply(record).windows[0]
    row = STANDARD_LEADS.index("aVF")
    chosen = normalise(window.ecg[[row]], window.stats[[row]], 0, 4000, twelve.load_normalisation)
    np.testing.assert_allclose(
        chosen, normalise(direct.ecg, direct.stats, 0, 4000, one.load_normalisation), rtol=1e-6
    )


def test_paper_normalises_each_consecutive_window_after_filtering(profile_config, make_ecg):
    profile = SignalProfile.from_config(profile_config("paper"))
    ecg = make_ecg(duration_s=34)
    windows = profile.apply(as_record(ecg)).windows
    assert [window.number for window in windows] == [0, 1, 2]
    filtered = sps.filtfilt(*sps.iirnotch(60, 30, 500), ecg.astype(np.float32).astype(float))
    filtered = sps.filtfilt(*sps.butter(2, 0.5, "highpass", fs=500), filtered)
    filtered = sps.filtfilt(*sps.butter(2, 50, "lowpass", fs=500), filtered)
    for number, window in enumerate(windows):
        part = filtered[:, 5000 * number : 5000 * (number + 1)]
        assert np.abs(load(window, profile) - joint_z_score(part)).max() <= 0.001 / part.std()


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("fs", [500, 100])
@pytest.mark.parametrize("native_fs", [100, 250, 257, 300, 360, 500, 1000])
def test_any_native_rate_reaches_the_target_shape_and_keeps_the_beats_in_place(
    profile_config, make_ecg, name, fs, native_fs
):
    profile = SignalProfile.from_config(profile_config(name, fs=fs, leads=["I", "V3"]))
    time = np.arange(10 * native_fs) / native_fs
    pulse = np.exp(-(((time - 6.2) / 0.03) ** 2))
    record = as_record(np.stack([pulse, -0.5 * pulse]), native_fs, ("I", "V3"))
    result = profile.apply(record)
    assert result.native_fs == native_fs
    (window,) = result.windows
    assert window.ecg.shape == (2, 10 * fs) == profile.shape
    assert (window.valid_start, window.valid_num_samples) == (0, 10 * fs)
    assert abs(int(window.ecg[0].argmax()) / fs - 6.2) <= 1 / fs
    assert window.ecg[0].max() > 500


def test_stages_beyond_the_native_nyquist_rate_are_dropped_and_recorded(profile_config, make_ecg):
    def dropped(name: str, native_fs: float) -> tuple[str, ...]:
        profile = SignalProfile.from_config(profile_config(name))
        return profile.apply(as_record(make_ecg(fs=native_fs), native_fs)).dropped_stages

    assert dropped("paper", 100) == ("notch", "lowpass")  # 60 Hz; 50 Hz is Nyquist itself
    assert dropped("paper", 120) == ("notch",)
    assert dropped("paper", 128) == ()
    assert dropped("author", 100) == ("notch", "fir_lowpass")
    assert dropped("official", 100) == ("notch",)
    assert dropped("official", 75) == ("notch", "bandpass.high_hz")
    assert dropped("zscore", 60) == ()


def test_recordings_at_the_target_rate_are_not_resampled_without_filters(profile_config, make_ecg):
    profile = SignalProfile.from_config(profile_config("zscore", fs=100))
    ecg = make_ecg(fs=100)
    (window,) = profile.apply(as_record(ecg, 100)).windows
    np.testing.assert_array_equal(window.ecg, np.rint(ecg.astype(np.float32) * 1000.0))


def test_filtering_100_hz_recordings_at_500_hz_loses_nothing_on_the_way(profile_config):
    """Straight lines up to 500 Hz and back would cost 4 dB at 40 Hz."""
    profile = SignalProfile.from_config(profile_config("paper", fs=100, leads=["I"]))
    time = np.arange(1000) / 100
    record = as_record(np.sin(2 * np.pi * 35 * time)[None], 100)
    (window,) = profile.apply(record).windows
    middle = window.ecg[0, 200:800] / 1000
    assert abs(np.sqrt(2) * middle.std() - 1) < 0.02


def test_linear_resampling_is_exact_on_straight_lines_and_never_extrapolates():
    line = np.arange(30.0)[None] / 300
    up = resample_linear(line, 300, 500)
    assert up.shape == (1, 50)
    np.testing.assert_allclose(up[0], np.minimum(np.arange(50) / 500, line.max()), atol=1e-12)
    assert resample_linear(line, 300, 300) is line


@pytest.mark.parametrize(("fs_in", "fs_out"), [(500, 100), (1000, 500), (360, 500), (257, 100)])
def test_polyphase_keeps_the_band_and_removes_what_would_alias(fs_in, fs_out):
    lower = min(fs_in, fs_out)
    time_in, time_out = np.arange(10 * fs_in) / fs_in, np.arange(10 * fs_out) / fs_out
    kept = 0.38 * lower
    out = resample_polyphase(np.sin(2 * np.pi * kept * time_in)[None], fs_in, fs_out)[0]
    middle = slice(fs_out, 9 * fs_out)
    np.testing.assert_allclose(out[middle], np.sin(2 * np.pi * kept * time_out)[middle], atol=2e-3)
    if fs_in > fs_out:
        beyond = np.sin(2 * np.pi * 0.62 * lower * time_in)[None]
        assert np.abs(resample_polyphase(beyond, fs_in, fs_out)[0, middle]).max() < 1e-3


def test_polyphase_leaves_constants_and_drifting_ends_alone():
    drift = np.linspace(3, 5, 5000)[None]
    np.testing.assert_allclose(resample_polyphase(drift, 500, 100)[0], drift[0, ::5], atol=1e-3)


def test_short_records_are_padded_and_only_their_valid_part_counts(profile_config, make_ecg):
    for name in PROFILES:
        profile = SignalProfile.from_config(profile_config(name))
        (window,) = profile.apply(as_record(make_ecg(duration_s=6))).windows
        assert (window.valid_start, window.valid_num_samples) == (0, 3000)
        assert not window.ecg[:, 3000:].any()
        if name not in ("author",):
            part = load(window, profile)
            assert abs(part.mean()) < 1e-3
            assert abs(part.std() - 1) < 1e-3


def test_padding_may_surround_the_record(profile_config, make_ecg):
    config = profile_config("paper")
    config["windows"] = {**config["windows"], "pad": "centre"}
    profile = SignalProfile.from_config(config)
    (window,) = profile.apply(as_record(make_ecg(duration_s=6))).windows
    assert (window.valid_start, window.valid_num_samples) == (1000, 3000)
    assert not window.ecg[:, :1000].any()
    assert load(window, profile).shape == (12, 3000)


def test_a_long_records_tail_is_dropped_or_padded_as_configured(profile_config, make_ecg):
    config = profile_config("paper")
    record = as_record(make_ecg(duration_s=27))
    assert len(SignalProfile.from_config(config).apply(record).windows) == 2
    config["windows"] = {**config["windows"], "tail": "pad"}
    windows = SignalProfile.from_config(config).apply(record).windows
    assert [window.valid_num_samples for window in windows] == [5000, 5000, 3500]


def broken(ecg: np.ndarray, kind: str) -> np.ndarray:
    ecg = ecg.copy()
    if kind == "too_short":
        return ecg[:, :2000]
    if kind == "all_zero":
        return np.zeros_like(ecg)
    if kind == "constant_lead":
        ecg[7] = 0.25
    elif kind == "missing_samples":
        ecg[3, :50] = np.nan
    elif kind == "amplitude_beyond_limit":
        ecg[2, 100] = -20.5
    return ecg


@pytest.mark.parametrize(
    "kind",
    ["too_short", "all_zero", "constant_lead", "missing_samples", "amplitude_beyond_limit"],
)
@pytest.mark.parametrize("name", PROFILES)
def test_records_beyond_the_limits_are_rejected_with_their_reason(
    profile_config, make_ecg, name, kind
):
    profile = SignalProfile.from_config(profile_config(name))
    with pytest.raises(RejectedRecordError) as error:
        profile.apply(as_record(broken(make_ecg(), kind)))
    assert error.value.reason.value == kind


@pytest.mark.parametrize("fs", [10.0, 49.0, 50_000.0])
def test_absurd_sampling_rates_are_rejected(profile_config, make_ecg, fs):
    profile = SignalProfile.from_config(profile_config("paper"))
    with pytest.raises(RejectedRecordError) as error:
        profile.apply(as_record(make_ecg(), fs))
    assert error.value.reason.value == "bad_sampling_rate"


def test_what_int16_microvolts_cannot_hold_is_rejected_as_saturated(profile_config, make_ecg):
    config = profile_config("zscore")
    config["limits"] = {**config["limits"], "max_abs_mv": 100}
    profile = SignalProfile.from_config(config)
    ecg = make_ecg()
    ecg[0, 50] = 32.767
    assert profile.apply(as_record(ecg)).windows[0].ecg.max() == 32767
    ecg[0, 50] = -32.768  # would be the missing-sample value of WFDB
    with pytest.raises(RejectedRecordError) as error:
        profile.apply(as_record(ecg))
    assert error.value.reason.value == "saturated"


def test_a_few_missing_samples_are_interpolated_before_anything_else(profile_config, make_ecg):
    profile = SignalProfile.from_config(profile_config("zscore"))
    ecg = make_ecg()
    whole = profile.apply(as_record(ecg)).windows[0].ecg.astype(int)
    ecg[4, 1000:1049] = np.nan
    ecg[5, :3] = np.nan
    filled = profile.apply(as_record(ecg)).windows[0].ecg.astype(int)
    steps = np.diff(filled[4, 999:1050])
    assert steps.max() - steps.min() <= 1  # a straight line, but for rounding
    assert (filled[5, :3] == filled[5, 3]).all()
    filled[4, 1000:1049] = whole[4, 1000:1049]
    filled[5, :3] = whole[5, :3]
    np.testing.assert_array_equal(filled, whole)


def test_a_site_may_have_its_own_mains_frequency(profile_config, make_ecg):
    config = profile_config("paper", site_overrides={"I0006": {"notch": {"frequency_hz": 50}}})
    profile = SignalProfile.from_config(config)
    assert profile.fingerprint != SignalProfile.from_config(profile_config("paper")).fingerprint
    record = as_record(make_ecg() + 0.5 * np.sin(2 * np.pi * 50 * np.arange(5000) / 500))

    def hum(site: str | None) -> float:
        (window,) = profile.apply(record, site).windows
        spectrum = np.abs(np.fft.rfft(window.ecg[:, 500:4500].astype(float)))
        return float(spectrum[:, 400].mean())  # 50 Hz

    assert hum("I0006") < 0.05 * hum("I0001")
    assert hum("I0001") == hum(None)


@given(data=st.data())
@settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_signal_through_any_profile_is_finite_or_rejected(profile_config, data):
    name = data.draw(st.sampled_from(PROFILES))
    config = profile_config(name, fs=data.draw(st.sampled_from([100, 500])), leads=["I", "II"])
    shortest = data.draw(st.sampled_from([0.001, 2]))
    config["windows"] = {**config["windows"], "min_duration_s": shortest}
    config["limits"] = {**config["limits"], "constant_leads": data.draw(st.booleans())}
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    length = data.draw(st.one_of(st.integers(1, 60), st.integers(900, 6000)))
    scale = data.draw(st.sampled_from([0, 1e-9, 0.01, 1, 30, 1e6]))
    ecg = (scale * rng.normal(size=(2, length))).astype(np.float32)
    ecg[rng.random(ecg.shape) < data.draw(st.sampled_from([0, 0.003, 0.5, 1]))] = np.nan
    fs = data.draw(st.sampled_from([50.0, 99.7, 257.0, 500.0, 977.3, 20000.0]))
    profile = SignalProfile.from_config(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = profile.apply(EcgRecord(ecg, ("I", "II"), fs))
    except RejectedRecordError:
        return
    for window in result.windows:
        assert window.ecg.shape == profile.shape
        assert np.isfinite(window.stats).all()
        assert np.isfinite(load(window, profile)).all()


def test_batched_normalisation_equals_one_by_one(make_ecg):
    rng = np.random.default_rng(1)
    ecg = rng.integers(-3000, 3000, (4, 3, 200)).astype(np.int16)
    stats = rng.uniform(0.1, 1, (4, 3, 2)).astype(np.float32)
    start, length = np.array([0, 5, 10, 0]), np.array([200, 100, 50, 1])
    for how in (
        LoadNormalisation(),
        LoadNormalisation(kind="per_lead", clip=2.0),
        LoadNormalisation(kind="none"),
        LoadNormalisation(centre=False),
    ):
        together = normalise(ecg, stats, start, length, how)
        assert together.dtype == np.float32
        for row in range(4):
            single = normalise(ecg[row], stats[row], start[row], length[row], how)
            np.testing.assert_array_equal(together[row], single)
            assert not single[:, start[row] + length[row] :].any()
    assert np.abs(normalise(ecg, stats, 0, 200, LoadNormalisation("per_lead", clip=2.0))).max() <= 2


def test_pooled_moments_equal_the_moments_of_all_leads_together(make_ecg):
    ecg = np.rint(make_ecg() * 1000).astype(np.int16)
    stats = np.stack([ecg.mean(1) / 1000, ecg.std(1) / 1000], 1).astype(np.float32)
    out = normalise(ecg, stats, 0, 5000, LoadNormalisation())
    np.testing.assert_allclose(out, joint_z_score(ecg / 1000), atol=1e-5)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_survives_the_way_through_a_manifest(profile_config, name):
    profile = SignalProfile.from_config(profile_config(name))
    assert profile.name == name
    assert profile.shape == (12, 5000)
    again = SignalProfile.from_config(profile.to_dict())
    assert again.to_dict() == profile.to_dict()
    assert again.fingerprint == profile.fingerprint


def test_fingerprints_tell_apart_what_changes_numbers_and_nothing_else(profile_config):
    paper = SignalProfile.from_config(profile_config("paper"))
    renamed = SignalProfile.from_config(profile_config("paper", name="mine", fs=500.0))
    assert renamed.fingerprint == paper.fingerprint
    clipped = profile_config("paper")
    clipped["normalisation"] = {**clipped["normalisation"], "clip": 20}
    clipped = SignalProfile.from_config(clipped)
    assert clipped.build_fingerprint == paper.build_fingerprint
    assert clipped.fingerprint != paper.fingerprint
    others = [
        profile_config("paper", fs=100),
        profile_config("paper", leads=["I"]),
        profile_config("paper", derive_leads=True),
        profile_config("paper", notch={"frequency_hz": 50}),
        profile_config(
            "paper",
            stages=["resample", "highpass", "notch", "lowpass", "decimate", "window", "statistics"],
        ),
        *(profile_config(name) for name in ("author", "official", "zscore")),
    ]
    prints = {SignalProfile.from_config(config).build_fingerprint for config in others}
    assert len(prints | {paper.build_fingerprint}) == len(others) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notsh": {}}, r"signal\.notsh.*'notch'"),
        ({"notch": {"frequency": 50}}, r"signal\.notch\.frequency.*'frequency_hz'"),
        ({"notch": {}}, r"signal\.notch\.frequency_hz is missing"),
        ({"notch": {"frequency_hz": "fifty"}}, r"signal\.notch\.frequency_hz='fifty'"),
        ({"notch": {"frequency_hz": 300}}, r"signal\.notch\.frequency_hz=300.*half"),
        ({"highpass": {"cutoff_hz": 0.5, "order": 2.5}}, r"signal\.highpass\.order=2\.5"),
        ({"leads": ["I", "aVX"]}, r"'aVX'.*'aVR'"),
        ({"leads": ["I", "I"]}, "twice"),
        ({"leads": "I"}, r"signal\.leads='I' is not a list"),
        ({"leads": []}, "not a list"),
        ({"fs": 0}, r"signal\.fs=0"),
        ({"fs": True}, r"signal\.fs=True"),
        ({"duration_s": float("nan")}, r"signal\.duration_s=nan"),
        ({"duration_s": 1e9}, "windows of"),
        ({"stages": ["resample", "notch"]}, "lacks 'decimate'"),
        ({"stages": ["resample", "nutch", "decimate", "window", "statistics"]}, "'notch'"),
        ({"stages": ["notch", "resample", "decimate", "window", "statistics"]}, "must run"),
        ({"stages": ["resample", "resample", "decimate", "window", "statistics"]}, "twice"),
        ({"windows": {"policy": "center"}}, r"signal\.windows\.policy='center'.*'centre'"),
        ({"limits": {"constant_leads": 1}}, "is not true or false"),
        ({"limits": {"max_missing_fraction": 1.5}}, "fraction"),
        ({"normalisation": {"kind": "lead"}}, r"signal\.normalisation\.kind='lead'"),
        ({"site_overrides": {"X": {"nothc": {}}}}, r"signal\.site_overrides\.X\.nothc.*'notch'"),
        ({"site_overrides": {"X": {"notch": {"frequency_hz": -1}}}}, r"X\.notch\.frequency_hz=-1"),
        ({"lead_aliases": {"ECG": "one"}}, r"signal\.lead_aliases\.ECG='one'"),
        ({"resample": "linear"}, r"signal\.resample='linear' is not a mapping"),
    ],
)
def test_mistakes_in_a_profile_name_the_key_and_the_remedy(profile_config, change, message):
    with pytest.raises(UserError, match=message):
        SignalProfile.from_config(profile_config("paper", **change))

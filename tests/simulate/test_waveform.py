"""The simulated heart: leads agree with one another, rhythms and shapes are what they claim."""

import numpy as np
import pytest
from scipy.signal import butter, find_peaks, sosfiltfilt

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.simulate import Anatomy, Findings, simulate_ecg
from ecgfounder_train.simulate.morphology import FLAGS
from ecgfounder_train.simulate.rhythm import CONDUCTED, RHYTHMS, make_beats
from ecgfounder_train.simulate.wfdb_write import quantise

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
LEAD = {name: index for index, name in enumerate(LEADS)}
FS = 500.0


def r_peaks(signal: np.ndarray, fs: float = FS) -> np.ndarray:
    """Times of QRS complexes, from the steepness of all leads together (Pan-Tompkins' idea)."""
    band = sosfiltfilt(butter(2, [8, 30], "bandpass", fs=fs, output="sos"), signal, axis=1)
    slope = (np.gradient(band, axis=1) ** 2).sum(axis=0)
    width = round(0.12 * fs)
    energy = np.convolve(slope, np.ones(width) / width, "same")
    peaks, _ = find_peaks(energy, height=0.2 * np.quantile(energy, 0.98), distance=0.26 * fs)
    return peaks / fs


def clean_beat(*flags: str, seed: int = 1, rhythm: str = "sinus") -> np.ndarray:
    """Signal without noise, of an average patient."""
    findings = Findings.of(*flags, rhythm=rhythm, rate_bpm=60.0)
    return simulate_ecg(
        seed, findings, FS, noise=0.0, anatomy=Anatomy.sample(np.random.default_rng(4))
    )


def median_beat(signal: np.ndarray, before_s: float = 0.3, after_s: float = 0.5) -> np.ndarray:
    """Shape: (12, samples); the QRS lies at `before_s`."""
    first, last = round(before_s * FS), round(after_s * FS)
    spots = np.rint(r_peaks(signal) * FS).astype(int)
    spots = spots[(spots > first) & (spots < signal.shape[1] - last)]
    return np.median([signal[:, spot - first : spot + last] for spot in spots], axis=0)


def qrs(signal: np.ndarray, name: str) -> np.ndarray:
    """The 200 ms around the QRS of one lead, from the level of the PR segment."""
    beat = median_beat(signal)[LEAD[name]]
    return beat[100:220] - beat[95:105].mean()


def test_same_seed_gives_the_same_signal_and_another_seed_does_not() -> None:
    assert np.array_equal(simulate_ecg(3, ["lbbb"]), simulate_ecg(3, ["lbbb"]))
    assert not np.array_equal(simulate_ecg(3, ["lbbb"]), simulate_ecg(4, ["lbbb"]))


@pytest.mark.parametrize(("fs", "duration_s"), [(500.0, 10.0), (250.0, 10.0), (500.0, 7.3)])
def test_shape_follows_rate_and_duration(fs: float, duration_s: float) -> None:
    signal = simulate_ecg(0, (), fs, duration_s)
    assert signal.shape == (12, round(fs * duration_s))
    assert signal.dtype == np.float32


@pytest.mark.parametrize("gain", [1000.0, 204.8])
def test_limb_leads_agree_within_one_digital_unit(gain: float) -> None:
    digital = quantise(simulate_ecg(7, ["inferior_infarct", "poor_quality"]), gain).T.astype(int)
    one, two, three, avr, avl, avf = digital[:6]
    assert np.abs(three - (two - one)).max() <= 1
    assert np.abs(avr + (one + two) / 2).max() <= 1
    assert np.abs(avl - (one - two / 2)).max() <= 1
    assert np.abs(avf - (two - one / 2)).max() <= 1


@pytest.mark.parametrize("rhythm", sorted(RHYTHMS))
def test_every_rhythm_is_drawn_and_finite(rhythm: str) -> None:
    for seed in range(3):
        signal = simulate_ecg(seed, Findings(rhythm, 60.0))
        assert np.isfinite(signal).all()
        assert 0.3 < np.ptp(signal) < 15.0


RHYTHM_OF = {
    "competing_junctional": "atrial_fibrillation",
    "fusion": "paced_ventricular",
    "supraventricular_complexes": "paced_ventricular",
    "atrial_fibrillation": "paced_ventricular",
    "retrograde": "junctional",
    "sinus_capture": "vt",
    "variable_av_block": "atrial_flutter",
    "two_to_one": "atrial_flutter",
}
WITH = {"weakened": "inferior_infarct", "acute": "inferior_infarct"}


@pytest.mark.parametrize("flag", sorted(FLAGS))
def test_every_finding_changes_the_signal(flag: str) -> None:
    anatomy = Anatomy.sample(np.random.default_rng(0))
    others = {WITH[flag]} if flag in WITH else set()
    rhythm = RHYTHM_OF.get(flag, "sinus")
    with_it, without = (
        simulate_ecg(2, Findings(rhythm, 72.0, frozenset(flags)), anatomy=anatomy)
        for flags in (others | {flag}, others)
    )
    assert np.abs(with_it - without).max() > 0.05


@pytest.mark.parametrize("rate_bpm", [45.0, 62.0, 80.0, 110.0, 145.0])
def test_peaks_of_the_waveform_have_the_rate_of_the_rhythm(rate_bpm: float) -> None:
    for seed in range(4):
        times_s = r_peaks(simulate_ecg(seed, Findings(rate_bpm=rate_bpm)))
        assert 60.0 / np.diff(times_s).mean() == pytest.approx(rate_bpm, rel=0.04)


@pytest.mark.parametrize("rhythm", ["sinus", "atrial_fibrillation", "paced_ventricular", "svt"])
def test_peaks_lie_where_the_rhythm_put_them(rhythm: str) -> None:
    anatomy = Anatomy.sample(np.random.default_rng(3))
    findings = Findings(rhythm, 75.0)
    beats = make_beats(np.random.default_rng(11), findings, 10.0, anatomy)
    found_s = r_peaks(simulate_ecg(11, findings, anatomy=anatomy))
    expected_s = beats.r_s[(beats.r_s > 0.2) & (beats.r_s < 9.8)]
    distance_s = np.abs(expected_s[:, None] - found_s).min(axis=1)
    assert distance_s.max() < 0.06
    assert abs(len(found_s) - len(expected_s)) <= 2


def test_atrial_fibrillation_is_more_irregular_than_sinus_rhythm() -> None:
    def variation(rhythm: str, seed: int) -> float:
        rr_s = np.diff(r_peaks(simulate_ecg(seed, Findings(rhythm, 75.0))))
        return float(rr_s.std() / rr_s.mean())

    fibrillation = [variation("atrial_fibrillation", seed) for seed in range(12)]
    sinus = [variation("sinus", seed) for seed in range(12)]
    assert min(fibrillation) > 2 * max(sinus)


def test_atrial_fibrillation_has_no_p_waves() -> None:
    anatomy = Anatomy.sample(np.random.default_rng(0))
    beats = make_beats(
        np.random.default_rng(0), Findings("atrial_fibrillation", 80.0), 10.0, anatomy
    )
    assert beats.p_s.size == 0
    assert beats.fibrillation_hz > 4


def test_every_conducted_sinus_beat_follows_its_p_wave_at_the_pr_interval() -> None:
    anatomy = Anatomy.sample(np.random.default_rng(0))
    for flag, low_s, high_s in (
        ("first_degree_av_block", 0.20, 0.34),
        ("short_pr", 0.08, 0.12),
        ("", 0.12, 0.20),
    ):
        findings = Findings.of(*filter(None, [flag]))
        beats = make_beats(np.random.default_rng(1), findings, 10.0, anatomy)
        pr_s = (beats.r_s[beats.kinds == CONDUCTED] - 0.045) - (beats.p_s - 0.05)
        assert (pr_s > low_s).all()
        assert (pr_s < high_s).all()


def test_premature_ventricular_complexes_are_early_wide_and_without_p() -> None:
    anatomy = Anatomy.sample(np.random.default_rng(0))
    beats = make_beats(np.random.default_rng(5), Findings.of("pvc"), 10.0, anatomy)
    ectopic = np.flatnonzero(beats.kinds)
    rr_s = np.diff(beats.r_s)
    assert 1 <= len(ectopic) <= 3
    assert (rr_s[ectopic - 1] < 0.75 * np.median(rr_s)).all()
    assert len(beats.p_s) == (beats.kinds == CONDUCTED).sum()


def test_wenckebach_drops_beats_after_growing_pr_intervals() -> None:
    anatomy = Anatomy.sample(np.random.default_rng(0))
    beats = make_beats(np.random.default_rng(5), Findings("mobitz_1", 60.0), 20.0, anatomy)
    assert len(beats.p_s) > 1.15 * len(beats.r_s)
    rr_s = np.diff(beats.r_s)
    assert rr_s.max() > 1.3 * np.median(rr_s)


@pytest.mark.parametrize(
    ("flag", "lead", "measure", "bound"),
    [
        ("rbbb", "V1", lambda beat: beat[55:90].max(), 0.35),  # R' after the S
        ("lbbb", "V6", lambda beat: (beat > 0.4 * beat.max()).sum() / FS, 0.07),  # broad R
        ("inferior_infarct", "III", lambda beat: -beat[:50].min(), 0.2),  # Q
        ("anterior_infarct", "V3", lambda beat: -beat[:50].min(), 0.2),
        ("rvh", "V1", lambda beat: beat.max(), 0.7),
        ("posterior_infarct", "V2", lambda beat: beat.max(), 0.6),
        ("inferior_injury", "III", lambda beat: beat[95:110].mean(), 0.1),  # ST elevation
        ("anterior_injury", "V2", lambda beat: beat[95:110].mean(), 0.1),
    ],
)
def test_sign_is_there_with_the_finding_and_not_without(flag, lead, measure, bound) -> None:
    assert measure(qrs(clean_beat(flag), lead)) > bound
    assert measure(qrs(clean_beat(), lead)) < bound


@pytest.mark.parametrize(
    ("flag", "low_deg", "high_deg"),
    [
        ("left_axis", -90, -25),
        ("lafb", -90, -35),
        ("right_axis", 90, 155),
        ("superior_axis", -170, -95),
    ],
)
def test_frontal_axis_is_that_of_the_finding(flag: str, low_deg: float, high_deg: float) -> None:
    signal = clean_beat(flag)
    one, avf = qrs(signal, "I").sum(), qrs(signal, "aVF").sum() * 2 / np.sqrt(3)
    assert low_deg < np.degrees(np.arctan2(avf, one)) < high_deg


def test_voltage_criteria_hold_with_their_findings_and_not_without() -> None:
    def sokolow_mv(*flags: str, seed: int) -> float:
        signal = simulate_ecg(seed, flags, noise=0.0)
        return float(qrs(signal, "V5").max() - qrs(signal, "V1").min())

    for seed in range(6):
        assert sokolow_mv("lvh_strain", seed=seed) > 3.4
        assert sokolow_mv(seed=seed) < 3.5


def test_low_voltage_stays_below_half_a_millivolt_in_the_limb_leads() -> None:
    for seed in range(6):
        signal = simulate_ecg(seed, ["low_voltage"], noise=0.0)
        assert np.ptp(signal[:6], axis=1).max() < 0.55


def test_pacing_spikes_stand_before_every_ventricular_complex() -> None:
    signal = clean_beat(rhythm="paced_ventricular")
    steps = np.abs(np.diff(signal[LEAD["II"]]))
    spikes_s = np.flatnonzero(steps > 0.25)[::2] / FS
    delays_s = r_peaks(signal)[:, None] - spikes_s
    delays_s = np.where(delays_s > 0, delays_s, np.inf).min(axis=1)
    assert len(spikes_s) >= 9
    assert (delays_s[1:] < 0.2).all()


def test_prolonged_qt_is_long() -> None:
    anatomy = Anatomy.sample(np.random.default_rng(0))

    def qt_s(*flags: str) -> float:
        beats = make_beats(np.random.default_rng(0), Findings.of(*flags), 10.0, anatomy)
        return float(beats.qt_s.mean())

    assert qt_s("long_qt") > qt_s() + 0.06


def test_reversed_arm_leads_turn_lead_one_over_and_leave_the_chest_alone() -> None:
    plain, swapped = clean_beat(), clean_beat("arm_leads_reversed")
    assert np.allclose(swapped[LEAD["I"]], -plain[LEAD["I"]])
    assert np.allclose(swapped[LEAD["II"]], plain[LEAD["III"]], atol=1e-5)
    assert np.allclose(swapped[LEAD["aVR"]], plain[LEAD["aVL"]], atol=1e-5)
    assert np.array_equal(swapped[6:], plain[6:])


def test_a_patient_keeps_the_shape_of_the_heart() -> None:
    def shape(patient: int, seed: int) -> np.ndarray:
        anatomy = Anatomy.sample(np.random.default_rng(patient))
        return median_beat(simulate_ecg(seed, (), anatomy=anatomy)).ravel()

    same = np.corrcoef(shape(1, 10), shape(1, 11))[0, 1]
    others = [np.corrcoef(shape(1, 10), shape(other, 11))[0, 1] for other in range(2, 8)]
    assert same > max(others)
    assert same > 0.98


def test_unknown_finding_names_the_nearest() -> None:
    with pytest.raises(UserError, match="inferior_infarct"):
        simulate_ecg(0, ["inferior_infract"])
    with pytest.raises(UserError, match="atrial_flutter"):
        simulate_ecg(0, Findings("atrial_fluter"))

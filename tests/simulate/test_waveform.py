"""The simulated heart: leads agree with one another, rhythms and shapes are what they claim."""

import numpy as np
import pytest
from scipy.signal import butter, find_peaks, sosfiltfilt

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.simulate import Anatomy, Findings, simulate_ecg
from ecgfounder_train.simulate.events import CONDUCTED, PACED, VENTRICULAR, Beats
from ecgfounder_train.simulate.morphology import FLAGS, INFARCTS
from ecgfounder_train.simulate.noise import RAIL_MV
from ecgfounder_train.simulate.rhythm import RHYTHMS, make_beats
from ecgfounder_train.simulate.waveform import simulate_with_truth
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


@pytest.mark.parametrize(
    ("flag", "same"),
    [
        ("leg_lead_reversed", {"I": ("III", -1), "II": ("II", -1), "aVR": ("aVF", 1)}),
        ("chest_leads_reversed", {"V1": ("V3", 1), "V2": ("V2", 1), "I": ("I", 1)}),
    ],
)
def test_swapped_cables_give_the_leads_of_the_swapped_electrodes(
    flag: str, same: dict[str, tuple[str, int]]
) -> None:
    plain, swapped = clean_beat(), clean_beat(flag)
    for shown, (of, sign) in same.items():
        assert np.allclose(swapped[LEAD[shown]], sign * plain[LEAD[of]], atol=1e-5), shown


@pytest.mark.parametrize("mains_hz", [50.0, 60.0])
def test_hum_lies_at_the_frequency_of_the_mains(mains_hz: float) -> None:
    signal = simulate_ecg(3, ["mains_hum"], mains_hz=mains_hz)
    spectrum = np.abs(np.fft.rfft(signal, axis=1)).sum(axis=0)
    hertz = np.fft.rfftfreq(signal.shape[1], 1 / FS)
    above = (hertz > 45) & (hertz < 65)
    assert hertz[above][spectrum[above].argmax()] == pytest.approx(mains_hz, abs=0.2)


def test_clipping_stops_at_the_rail_and_a_loose_electrode_shows_no_heart() -> None:
    clipped = [simulate_ecg(seed, ["clipping"]) for seed in range(6)]
    assert any((np.abs(signal[6:]) >= RAIL_MV).sum() > 20 for signal in clipped)
    assert all(np.abs(signal[6:]).max() <= RAIL_MV for signal in clipped)
    loose = simulate_ecg(2, ["lead_off"])
    quiet = np.ptp(loose[6:], axis=1) < 0.2
    assert quiet.sum() == 1
    assert (np.diff(loose[6:][quiet]) != 0).any()  # Hum: not what a check for a dead lead finds.


@pytest.mark.parametrize("flag", ["motion", "clipping", "mains_hum"])
def test_artefacts_keep_the_limb_leads_consistent(flag: str) -> None:
    one, two, three, avr, avl, avf = quantise(simulate_ecg(5, [flag]), 1000.0).T[:6].astype(int)
    assert np.abs(three - (two - one)).max() <= 1
    assert np.abs(avr + (one + two) / 2).max() <= 1
    assert np.abs(avl - (one - two / 2)).max() <= 1
    assert np.abs(avf - (two - one / 2)).max() <= 1


def beats_of(*flags: str, rhythm: str = "sinus", rate_bpm: float = 70.0, seed: int = 5) -> Beats:
    anatomy = Anatomy.sample(np.random.default_rng(0))
    findings = Findings.of(*flags, rhythm=rhythm, rate_bpm=rate_bpm)
    return make_beats(np.random.default_rng(seed), findings, 10.0, anatomy)


def test_mobitz_2_drops_beats_at_a_constant_pr() -> None:
    beats = beats_of(rhythm="mobitz_2", rate_bpm=50.0)
    pr_s = np.array([(r - beats.p_s[beats.p_s < r].max()) for r in beats.r_s])
    assert np.ptp(pr_s) < 0.002
    assert len(beats.p_s) > 1.2 * len(beats.r_s)


def test_two_to_one_block_conducts_every_second_p_wave() -> None:
    beats = beats_of(rhythm="av_block_2_to_1", rate_bpm=40.0)
    assert len(beats.p_s) == pytest.approx(2 * len(beats.r_s), abs=1)


def test_sa_block_of_the_second_kind_leaves_out_one_whole_cycle() -> None:
    rr_s = np.diff(beats_of("sa_block_2").r_s)
    assert rr_s.max() / np.median(rr_s) == pytest.approx(2.0, abs=0.15)


def test_sa_block_of_the_first_kind_shortens_pp_before_a_gap_of_less_than_two() -> None:
    rr_s = np.diff(beats_of("sa_block_1").r_s)
    gaps = np.flatnonzero(rr_s > 1.4 * np.median(rr_s))
    assert len(gaps) >= 2
    assert (rr_s[gaps] < 2 * rr_s[gaps - 1]).all()
    assert (rr_s[gaps - 1] < rr_s[gaps - 2]).all()


@pytest.mark.parametrize("rhythm", ["complete_heart_block", "av_dissociation", "vt"])
def test_p_waves_go_their_own_way_when_the_av_node_does_not_conduct(rhythm: str) -> None:
    beats = beats_of(rhythm=rhythm, rate_bpm=150.0 if rhythm == "vt" else 62.0)
    inside = beats.r_s[(beats.r_s > 0) & (beats.r_s < 10)]
    pr_s = np.array([r - beats.p_s[beats.p_s < r].max() for r in inside])
    assert pr_s.std() > 0.1


def test_escape_and_paced_beats_end_pauses() -> None:
    for flag, kind in (("ventricular_escape", VENTRICULAR), ("v_paced_complexes", PACED)):
        beats = beats_of(flag)
        after_pause = np.flatnonzero(beats.kinds == kind)
        rr_s = np.diff(beats.r_s)
        assert len(after_pause)
        assert (rr_s[after_pause - 1] > 1.1 * np.median(rr_s)).all()


def test_biventricular_pacing_has_two_spikes_per_beat_and_failure_has_spikes_alone() -> None:
    both = beats_of(rhythm="paced_biventricular")
    assert len(both.spikes_s) == 2 * len(both.r_s)
    failing = beats_of(rhythm="pacing_failure", rate_bpm=60.0)
    nearest = np.abs(failing.spikes_s[:, None] - failing.r_s).min(axis=1)
    assert nearest.max() > 0.2


def test_a_blocked_premature_p_wave_has_no_qrs() -> None:
    beats = beats_of("blocked_pac")
    assert len(beats.p_s) > len(beats.r_s)


def test_a_paced_qrs_is_broad_but_not_broader_than_life() -> None:
    for rhythm in ("paced_ventricular", "paced_dual", "vt"):
        truths = [simulate_with_truth(seed, Findings(rhythm, 75.0))[1] for seed in range(6)]
        assert all(0.12 < truth.qrs_s < 0.20 for truth in truths), rhythm


@pytest.mark.parametrize("name", [name for name in INFARCTS if "posterior" not in name])
def test_a_scar_gives_a_plain_q_wave_not_a_w(name: str) -> None:
    """In the lead with the deepest Q, the QRS turns three times at most: Q, R, S or QS."""
    signal = clean_beat(name)
    beats = [qrs(signal, lead)[20:90] for lead in LEADS]
    deepest = min(beats, key=lambda beat: beat[:40].min())
    turns, _ = find_peaks(np.abs(deepest), prominence=0.12)
    assert len(turns) <= 3

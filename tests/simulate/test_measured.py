"""Measured, not admired: what readers that know nothing of the generator find in its ECGs.

With ECG_TEST_TIER=all the cohorts are four times as large.
"""

import os
import warnings

import numpy as np
import pytest
from ecg_measurements import LABEL_MEASUREMENTS, measure
from label_cohorts import VOCABULARY, auroc, aurocs, population

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.simulate.events import Findings
from ecgfounder_train.simulate.waveform import Truth, simulate_with_truth

TIMES = 4 if os.environ.get("ECG_TEST_TIER") == "all" else 1
FS = 500.0
COHORT: tuple[Findings, ...] = (
    Findings(rate_bpm=62.0),
    Findings(rate_bpm=74.0),
    Findings(rate_bpm=88.0),
    Findings.of("first_degree_av_block"),
    Findings.of("left_axis"),
    Findings.of("rightward_axis"),
    Findings.of("long_qt", rate_bpm=66.0),
    Findings.of("lvh_voltage"),
    Findings.of("rsr"),
    Findings.of("t_abnormal", rate_bpm=70.0),
)


def delineated(signal: np.ndarray) -> dict[str, float]:
    """Rate, PR, QRS, QT (s) and axis as neurokit2 finds them, by the prominence of waves.

    Each lead gives medians over its beats; of four leads the second earliest onset and the second
    latest offset count, as carts take intervals over all leads, and one lead may be wrong.
    """
    import neurokit2 as nk

    # The lead with the tallest R: neurokit2 looks for positive peaks of one lead.
    tallest = max((0, 1, 10), key=lambda lead: float(np.quantile(signal[lead], 0.995)))
    peaks = nk.ecg_peaks(nk.ecg_clean(signal[tallest], FS), FS)[1]["ECG_R_Peaks"]
    marks: dict[str, list[float]] = {
        "P_Onsets": [],
        "R_Onsets": [],
        "R_Offsets": [],
        "T_Offsets": [],
    }
    for lead in (0, 1, 7, 10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            waves = nk.ecg_delineate(
                nk.ecg_clean(signal[lead], FS), peaks, FS, method="prominence"
            )[1]
            for name, found in marks.items():
                times = np.array(waves[f"ECG_{name}"], float) - peaks
                found.append(float(np.nanmedian(times)) / FS)
    onset, p_onset = (sorted(marks[name])[1] for name in ("R_Onsets", "P_Onsets"))
    offset, t_offset = (sorted(marks[name])[-2] for name in ("R_Offsets", "T_Offsets"))
    first, last = round(onset * FS), round(offset * FS)
    one, avf = (
        np.median(
            [
                (signal[lead, at + first : at + last] - signal[lead, at + first]).sum()
                for at in peaks[1:-1]
            ]
        )
        for lead in (0, 5)
    )
    return {
        "rate_bpm": 60.0 * FS / float(np.diff(peaks).mean()),
        "pr_s": onset - p_onset,
        "qrs_s": offset - onset,
        "qt_s": t_offset - onset,
        "axis_deg": float(np.degrees(np.arctan2(avf * 2 / np.sqrt(3), one))),
    }


@pytest.fixture(scope="module")
def read_by_neurokit() -> list[tuple[Truth, dict[str, float]]]:
    pairs = []
    for seed in range(2 * TIMES):
        for number, findings in enumerate(COHORT):
            signal, truth = simulate_with_truth(1000 * seed + number, findings, FS)
            pairs.append((truth, delineated(signal)))
    return pairs


def errors(pairs: list[tuple[Truth, dict[str, float]]], name: str) -> np.ndarray:
    return np.array([found[name] - getattr(truth, name) for truth, found in pairs])


def test_an_independent_delineator_finds_the_heart_rate_within_2_percent(read_by_neurokit) -> None:
    relative = errors(read_by_neurokit, "rate_bpm") / [t.rate_bpm for t, _ in read_by_neurokit]
    assert np.median(np.abs(relative)) < 0.005
    assert np.quantile(np.abs(relative), 0.95) < 0.02


@pytest.mark.parametrize("name", ["pr_s", "qrs_s", "qt_s"])
def test_an_independent_delineator_finds_intervals_within_20_ms(read_by_neurokit, name) -> None:
    found = np.abs(errors(read_by_neurokit, name))
    print(f"{name}: median error {1000 * np.nanmedian(found):.1f} ms")
    assert np.nanmedian(found) < 0.020


def test_an_independent_delineator_finds_the_axis_within_15_degrees(read_by_neurokit) -> None:
    turn = (errors(read_by_neurokit, "axis_deg") + 180) % 360 - 180
    assert np.median(np.abs(turn)) < 15
    assert np.quantile(np.abs(turn), 0.9) < 15


def test_our_own_measurements_agree_with_the_truth() -> None:
    """The reader that judges the labels below is itself judged here."""
    found = []
    for seed in range(2 * TIMES):
        for number, findings in enumerate(COHORT):
            signal, truth = simulate_with_truth(5000 + 100 * seed + number, findings, FS)
            f = measure(signal)
            found.append(
                (f["PR"] - truth.pr_s, f["QRS duration"] - truth.qrs_s, f["QT"] - truth.qt_s)
            )
    assert (np.median(np.abs(found), axis=0) < 0.020).all()


def test_at_least_60_labels_are_told_apart_by_one_named_measurement(capsys) -> None:
    table = aurocs(num_positives=8 * TIMES, num_others=250 * TIMES, seed=0)
    table.sort(key=lambda row: -row[3])
    with capsys.disabled():
        print(f"\n{'AUROC':>6} {'label':<72} measurement")
        for label, name, _, value in table:
            print(f"{value:6.3f} {label:<72} {name}")
        print(f"{sum(row[3] >= 0.9 for row in table)} of {len(table)} labels reach 0.9")
    assert set(LABEL_MEASUREMENTS) <= set(VOCABULARY.labels)
    assert all(count == 8 * TIMES for _, _, count, _ in table)
    assert sum(value >= 0.9 for *_, value in table) >= 60


def test_labels_that_need_a_previous_ecg_carry_no_signal() -> None:
    """No single measurement tells them apart: pooled over all of them, AUROC stays near a half."""
    features, labels = population(250 * TIMES, 0)
    names = [name for name, needs in needs_previous().items() if needs]
    assert len(names) == 22
    has_any = labels[:, [VOCABULARY.labels.index(name) for name in names]].any(axis=1)
    assert has_any.sum() > 20
    measurements = ("heart rate", "QTc", "T V5", "ST V5", "T II", "ST II", "axis", "Sokolow")
    for key in measurements:
        values = np.array([f[key] for f in features])
        assert 0.4 < auroc(values[has_any].tolist(), values[~has_any].tolist()) < 0.6, key


def needs_previous() -> dict[str, bool]:
    from ecgfounder_train.simulate.statements import SERIAL_CODES

    vocabulary = Vocabulary.load("ecgfounder150")
    said = [vocabulary.encode([str(code)])[0].astype(bool) for code in sorted(SERIAL_CODES)]
    any_of = np.logical_or.reduce(said)
    return dict(zip(vocabulary.labels, any_of.tolist(), strict=True))


def test_unknown_findings_are_refused_with_the_truth_too() -> None:
    with pytest.raises(UserError, match="lbbb"):
        simulate_with_truth(0, ["lbb"])

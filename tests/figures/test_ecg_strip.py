"""ECG strips: true to scale, every lead named, nothing of the signal lost."""

import numpy as np
import pytest
import wfdb

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.figures import figure_png, figure_svg, strip_figure

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
MM_PER_INCH = 25.4


def beats(num_leads=12, fs=500, duration_s=10.0, amplitude=1.0):
    """One spike a second; each lead taller than the one before."""
    time_s = np.arange(round(fs * duration_s)) / fs
    spike = amplitude * np.exp(-(((time_s % 1 - 0.5) / 0.02) ** 2))
    return np.outer(1 + np.arange(num_leads) / 12, spike)


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def traces(figure, min_points=50):
    return [line for line in figure.axes[0].lines if len(line.get_xdata()) >= min_points]


def test_twelve_leads_come_as_three_rows_of_four_and_a_rhythm_strip():
    figure = strip_figure(beats(), 500, LEADS, "title")
    segments = traces(figure)
    assert len(segments) == 13
    assert [len(line.get_xdata()) for line in segments[:12]] == [1251] * 3 + [1250] + (
        [1251] * 3 + [1250]
    ) * 2
    assert len(segments[12].get_xdata()) == 5000
    assert sorted(text for text in texts(figure) if text in LEADS) == sorted((*LEADS, "II"))


def test_one_second_is_25_mm_and_one_millivolt_10_mm_on_paper():
    figure = strip_figure(beats(), 500, LEADS)
    axes = figure.axes[0]
    # The axes fill the sheet and count in millimetres, so that data units are paper units.
    assert axes.get_position().bounds == (0, 0, 1, 1)
    assert axes.get_xlim()[1] == pytest.approx(figure.get_figwidth() * MM_PER_INCH)
    assert axes.get_ylim()[1] == pytest.approx(figure.get_figheight() * MM_PER_INCH)
    rhythm = traces(figure)[-1]
    assert np.ptp(rhythm.get_xdata()) == pytest.approx(250 - 25 / 500)
    assert np.ptp(rhythm.get_ydata()) == pytest.approx(10 * (13 / 12), abs=0.01)
    pulse = next(line for line in axes.lines if len(line.get_xdata()) == 6)
    assert np.ptp(pulse.get_ydata()) == 10
    assert pulse.get_xdata()[3] - pulse.get_xdata()[2] == 5
    assert "25 mm/s, 10 mm/mV, 500 Hz" in texts(figure)


def test_sheet_fits_a4_landscape_however_tall_the_beats():
    for amplitude in (0.1, 1, 2, 2.5):
        figure = strip_figure(beats(amplitude=amplitude), 500, LEADS)
        assert figure.get_figwidth() * MM_PER_INCH <= 297 - 24
        assert figure.get_figheight() * MM_PER_INCH <= 210 - 24


def test_no_beat_is_cut_at_the_edges_of_the_sheet():
    signal = beats(amplitude=2.5)
    signal[1] *= -1  # lead II, the lowest row, points down
    figure = strip_figure(signal, 500, LEADS)
    paper = figure.axes[0].patches[0]
    bottom, top = paper.get_y(), paper.get_y() + paper.get_height()
    for line in traces(figure):
        assert bottom <= line.get_ydata().min()
        assert line.get_ydata().max() <= top


def test_leads_in_stored_order_of_another_archive_stand_in_their_places():
    order = (5, 3, 11, 0, 1, 2, 4, 6, 7, 8, 9, 10)
    signal = beats()
    plain = figure_svg(strip_figure(signal, 500, LEADS))
    shuffled = figure_svg(strip_figure(signal[list(order)], 500, [LEADS[i] for i in order]))
    assert shuffled == plain


def test_single_lead_longer_than_ten_seconds_goes_on_in_further_rows():
    figure = strip_figure(beats(1, 300, 28.0), 300, ["I"])
    assert sum(len(line.get_xdata()) for line in traces(figure)) >= 300 * 28
    assert {"I", "10 s", "20 s"} <= set(texts(figure))


def test_long_recording_of_many_leads_says_that_it_shows_the_first_seconds():
    figure = strip_figure(beats(3, 250, 30.0), 250, ["I", "II", "V5"])
    assert any("first 10 s of 30 s" in text for text in texts(figure))


def test_missing_samples_leave_a_gap_and_a_missing_lead_is_said():
    signal = beats()
    signal[1, 1000:1500] = np.nan
    signal[6] = np.nan
    figure = strip_figure(signal, 500, LEADS)
    assert np.isnan(traces(figure)[-1].get_ydata()).sum() == 500
    assert "V1: no signal" in texts(figure)
    assert len(figure_png(figure)) > 10_000


def test_small_notches_survive_in_the_vector_drawing():
    signal = beats()
    signal[:, 2000:2005] += 0.05  # 50 microvolts for 10 ms: half a millimetre on paper
    with_notch = figure_svg(strip_figure(signal, 500, LEADS))
    without = figure_svg(strip_figure(beats(), 500, LEADS))
    assert len(with_notch) != len(without)
    assert len(with_notch) < 400_000


@pytest.mark.parametrize(
    ("signal", "fs", "names", "message"),
    [
        (np.zeros((2, 0)), 500, ["I", "II"], "needs a signal"),
        (np.zeros((2, 10)), 500, ["I"], "one name per lead"),
        (np.zeros((1, 10)), 0, ["I"], "fs=0"),
    ],
)
def test_impossible_input_is_refused(signal, fs, names, message):
    with pytest.raises(UserError, match=message):
        strip_figure(signal, fs, names)


@pytest.mark.real_data
def test_real_ecgs_are_drawn(real_data):
    headers = sorted(real_data.glob("ptbxl500/**/*.hea"))[:2]
    assert headers, "the excerpt of PTB-XL at 500 Hz"
    for header in headers:
        record = wfdb.rdrecord(str(header.with_suffix("")))
        names = [name.replace("AV", "aV") for name in record.sig_name]
        svg = figure_svg(strip_figure(record.p_signal.T, record.fs, names))
        assert 50_000 < len(svg) < 500_000

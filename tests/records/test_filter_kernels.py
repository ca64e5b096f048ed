"""The compiled filters against SciPy, which defines them."""

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from scipy import signal as sps

from ecgfounder_train.core.errors import RejectedRecordError
from ecgfounder_train.records import filters, read_record

SHAPES = [(1, 400), (2, 47), (5, 1000), (6, 333), (7, 5001), (12, 5000), (13, 900)]


def signals():
    """Signals of every shape, among them wander, spikes, steps and silence."""
    rng = np.random.default_rng(3)
    for num_leads, num_samples in SHAPES:
        noise = rng.normal(0, 0.1, (num_leads, num_samples))
        yield noise
        yield noise.cumsum(axis=1) + rng.normal(0, 3, (num_leads, 1))
        yield np.round(noise, 1)  # many equal values
        spike = np.zeros((num_leads, num_samples))
        spike[:, num_samples // 2] = 1e6
        yield spike + 1e-7 * noise
        yield np.zeros((num_leads, num_samples))


@pytest.mark.parametrize(
    ("kind", "order", "edges"),
    [
        ("bandpass", 4, (0.67, 40)),
        ("highpass", 2, (0.5,)),
        ("lowpass", 2, (50,)),
        ("lowpass", 1, (40,)),
        ("highpass", 3, (0.05,)),
        ("bandpass", 10, (5, 15)),
    ],
)
def test_butterworth_equals_scipys_sosfiltfilt(kind, order, edges):
    sos = sps.butter(order, edges if len(edges) > 1 else edges[0], kind, fs=500, output="sos")
    pad = 3 * (order * len(edges) + 1)
    for ecg in signals():
        if ecg.shape[1] <= pad:
            continue
        wanted = sps.sosfiltfilt(sos, ecg, axis=1, padlen=pad)
        scale = np.abs(ecg).max()
        result = filters.butterworth(ecg, 500, kind, order, *edges)
        assert np.abs(result - wanted).max() <= 1e-8 * scale


@pytest.mark.parametrize("fs", [250.0, 500.0, 1000.0])
@pytest.mark.parametrize("mains_hz", [50.0, 60.0])
def test_notch_equals_scipys_filtfilt(fs, mains_hz):
    for ecg in signals():
        wanted = sps.filtfilt(*sps.iirnotch(mains_hz, 30, fs), ecg, axis=1)
        result = filters.notch(ecg, fs, mains_hz, 30)
        assert np.abs(result - wanted).max() <= 1e-10 * np.abs(ecg).max()


@pytest.mark.parametrize("fs", [100.0, 257.0, 500.0, 2000.0])
def test_running_median_equals_scipys_medfilt_bit_for_bit(fs):
    for ecg in signals():
        width = int(0.4 * fs) + 1
        width = min(width + (width % 2 == 0), 2 * ((ecg.shape[1] - 1) // 2) + 1)
        wanted = ecg - np.stack([sps.medfilt(lead, width) for lead in ecg])
        np.testing.assert_array_equal(filters.subtract_running_median(ecg, fs, 0.4), wanted)


def test_running_median_of_a_long_recording_is_exact_where_its_pieces_meet():
    ecg = np.random.default_rng(0).normal(size=(1, 26_000)).cumsum(axis=1)
    wanted = ecg - sps.medfilt(ecg[0], 201)
    np.testing.assert_array_equal(filters.subtract_running_median(ecg, 500, 0.4), wanted)


@pytest.mark.parametrize(
    ("fs_in", "fs_out"),
    [(500, 100), (100, 500), (1000, 500), (257, 500), (360, 500), (500, 128), (977.3, 500)],
)
def test_polyphase_equals_scipys_resample_poly_away_from_the_ends(fs_in, fs_out):
    """At the ends SciPy pads with zeros; ours is held to a longer, reflected recording there."""
    for ecg in signals():
        result = filters.resample_polyphase(ecg, fs_in, fs_out)
        assert result.shape == (len(ecg), max(round(ecg.shape[1] * fs_out / fs_in), 1))
        ratio = Fraction(fs_out / fs_in).limit_denominator(1000)
        taps = sps.firwin(
            58 * max(ratio.numerator, ratio.denominator) + 1,
            0.9 / max(ratio.numerator, ratio.denominator),
            window=("kaiser", 8.6),
        )
        pad = (ecg.shape[1] - 1) // ratio.denominator * ratio.denominator
        reflected = np.pad(ecg, ((0, 0), (pad, pad)), "reflect", reflect_type="odd")
        wanted = sps.resample_poly(
            reflected, ratio.numerator, ratio.denominator, axis=1, window=taps
        )[:, pad * ratio.numerator // ratio.denominator :][:, : result.shape[1]]
        reach = 30 * max(fs_in, fs_out) / fs_in
        if reach < ecg.shape[1]:
            assert np.abs(result[:, :-2] - wanted[:, :-2]).max() <= 1e-10 * np.abs(ecg).max()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_is_not_finite_neither_crashes_nor_hangs_nor_touches_another_lead():
    rng = np.random.default_rng(1)
    for value in (np.nan, np.inf, -np.inf, 1e308):
        ecg = rng.normal(size=(3, 700))
        clean = ecg[:1].copy()
        ecg[1, 100:300] = value
        ecg[2] = value
        for work in (
            lambda x: filters.subtract_running_median(x, 500, 0.4),
            lambda x: filters.butterworth(x, 500, "bandpass", 4, 0.67, 40),
            lambda x: filters.resample_polyphase(x, 500, 100),
            lambda x: filters.resample_linear(x, 250, 500),
        ):
            alone, result = work(clean.copy()), work(ecg.copy())
            assert result.shape == (3, alone.shape[1])
            np.testing.assert_allclose(result[:1], alone, rtol=1e-12, atol=1e-12)


def test_a_handful_of_samples_is_rejected_as_too_short():
    with pytest.raises(RejectedRecordError) as error:
        filters.butterworth(np.ones((2, 27)), 500, "bandpass", 4, 0.67, 40)
    assert error.value.reason.value == "too_short"
    with pytest.raises(RejectedRecordError):
        filters.notch(np.ones((2, 9)), 500, 50, 30)
    assert filters.notch(np.ones((2, 10)), 500, 50, 30).shape == (2, 10)


@pytest.mark.parametrize(("fs", "transition_hz"), [(500, 12.5), (250, 12.5), (257, 9), (1000, 1)])
def test_fir_lowpass_equals_a_plain_convolution(fs, transition_hz):
    half = int(np.ceil(3.3 * fs / transition_hz / 2))
    taps = sps.firwin(2 * half + 1, 50 + transition_hz / 2, fs=fs)
    for ecg in signals():
        result = filters.fir_lowpass(ecg, fs, 50, transition_hz)
        pad = min(half, ecg.shape[1] - 1)
        wanted = np.pad(ecg, ((0, 0), (pad, pad)), "reflect", reflect_type="odd")
        wanted = np.pad(wanted, ((0, 0), (half - pad, half - pad)))
        wanted = np.stack([np.convolve(lead, taps, "valid") for lead in wanted])
        assert np.abs(result - wanted).max() <= 1e-12 * max(np.abs(ecg).max(), 1)


def test_importing_records_does_not_import_numba():
    code = "import sys, ecgfounder_train.records; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.real_data
def test_kernels_equal_scipy_on_real_recordings(real_data):
    paths = sorted((real_data / "ptbxl500").rglob("*.hea"))[::8]
    paths += sorted((real_data / "ludb").rglob("*.hea"))[::8]
    sos = sps.butter(4, [0.67, 40], "bandpass", fs=500, output="sos")
    assert len(paths) > 10
    for path in paths:
        ecg = read_record(path).signal.astype(np.float64)
        wanted = sps.sosfiltfilt(sos, ecg, axis=1, padlen=27)
        result = filters.butterworth(ecg, 500, "bandpass", 4, 0.67, 40)
        assert np.abs(result - wanted).max() < 1e-9  # mV
        baseline = np.stack([sps.medfilt(lead, 201) for lead in wanted])
        median = filters.subtract_running_median(wanted, 500, 0.4)
        np.testing.assert_array_equal(median, wanted - baseline)

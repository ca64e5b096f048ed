"""Curve figures: they show what they are given, also at the edges of what is possible."""

import matplotlib as mpl
import numpy as np
import pytest

from ecgfounder_train.figures import (
    CalibrationPoints,
    Curve,
    auroc_by_prevalence_figure,
    calibration_figure,
    figure_png,
    figure_svg,
    precision_recall_figure,
    prevalence_figure,
    roc_figure,
    training_figure,
)
from ecgfounder_train.figures.training import without_gaps


def num_dark_pixels(figure):
    figure.canvas.draw()
    return int((np.asarray(figure.canvas.buffer_rgba())[..., :3].min(axis=-1) < 200).sum())


def test_long_curve_is_thinned_without_moving_its_steep_start():
    x = np.linspace(0, 1, 200_000) ** 3
    y = x**0.05
    figure = roc_figure([Curve("a", x, y)])
    line = max(figure.axes[0].lines, key=lambda item: len(item.get_xdata()))
    assert 300 < len(line.get_xdata()) <= 402
    assert line.get_xdata()[0] == 0
    assert line.get_xdata()[-1] == 1
    area = np.trapezoid(line.get_ydata(), line.get_xdata())
    assert area == pytest.approx(np.trapezoid(y, x), abs=1e-3)


def test_every_figure_has_ink_and_is_a_small_svg():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 50)
    points = CalibrationPoints("a", x, x, x - 0.1, x + 0.1)
    names = [f"label {index}" for index in range(150)]
    positives = np.geomspace(4000, 0.9, 150).astype(int)
    series = {
        "train/loss": (np.arange(5000.0), rng.random(5000)),
        "val/loss": (np.arange(5.0), rng.random(5)),
        "lr": (np.arange(5000.0), rng.random(5000)),
    }
    figures = [
        roc_figure([Curve(name, x, np.sqrt(x), "note") for name in names[:6]]),
        precision_recall_figure([Curve("a", x, 1 - x)]),
        calibration_figure([points] * 8),
        auroc_by_prevalence_figure(positives / 1e4, rng.random(150), positives, names),
        prevalence_figure(positives, np.full(150, 10_000), names),
        prevalence_figure(positives[:5], np.full(5, 10_000), names),
        training_figure(series),
    ]
    for figure in figures:
        assert num_dark_pixels(figure) > 2_000
        assert len(figure_svg(figure)) < 160_000
        assert "<path d=" in figure_svg(figure)


def test_weakest_labels_are_named_and_undefined_ones_left_out():
    figure = auroc_by_prevalence_figure(
        [0.5, 0.1, 0.01, 0.0],
        [0.9, 0.6, 0.99, np.nan],
        [500, 100, 5, 0],
        ["a", "weak", "rare", "x"],
    )
    written = [text.get_text() for text in figure.axes[0].texts]
    assert written[0] == "weak"
    assert not {"rare", "x"} & set(written)
    assert sum(len(part.get_offsets()) for part in figure.axes[0].collections) == 3


def test_figures_of_nothing_do_not_fail():
    for figure in (
        roc_figure([]),
        auroc_by_prevalence_figure([0.0], [np.nan], [0], ["x"]),
        prevalence_figure([0], [0], ["x"]),
        prevalence_figure(np.zeros(60), np.zeros(60), ["x"] * 60),
    ):
        assert figure_png(figure).startswith(b"\x89PNG")
    assert training_figure({}) is None
    assert training_figure({"something else": (np.arange(3.0), np.arange(3.0))}) is None


def test_only_measured_panels_are_drawn():
    point = (np.array([1.0]), np.array([0.5]))
    assert len(training_figure({"val/loss": point}).axes) == 1
    assert len(training_figure({"val/loss": point, "lr": point, "ecg_per_s": point}).axes) == 3


def test_rows_written_twice_by_a_resumed_run_count_once():
    x, y = without_gaps([1, 2, 3, 2, 3, 4, None], [0.9, 0.8, 0.7, 0.5, None, 0.4, 1.0])
    assert x.tolist() == [1, 2, 3, 4]
    assert y.tolist() == [0.9, 0.5, 0.7, 0.4]


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    before = dict(mpl.rcParams)
    figure_svg(roc_figure([Curve("a", np.arange(2.0), np.arange(2.0))]))
    assert dict(mpl.rcParams) == before

"""Forest, confusion and one label's figure: what they are given is what they show."""

import numpy as np
import pytest

from ecgfounder_train.figures import (
    CalibrationPoints,
    Curve,
    DecisionCurve,
    ForestSeries,
    HtmlPage,
    WithInterval,
    confusion_figure,
    figure_svg,
    forest_figure,
    label_figure,
)
from ecgfounder_train.figures.html import Column


def test_forest_draws_no_bar_where_there_is_no_interval():
    value = np.array([0.9, 0.8])
    series = ForestSeries("model", value, np.array([0.85, np.nan]), np.array([0.95, np.nan]))
    axes = forest_figure(["first", "second"], [series]).axes[0]
    bars = [segment for item in axes.collections for segment in item.get_segments()]
    assert [bar[:, 0].tolist() for bar in bars if len(bar)] == [[0.85, 0.95]]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["first", "second"]


def test_confusion_writes_every_share_and_leaves_unknown_ones_blank():
    figure = confusion_figure(["a", "b"], ["a", "b"], [[0.5, np.nan], [0.25, 1]], [10, 1234])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["50%", "25%", "100%"]
    assert "1,234" in figure.axes[0].get_yticklabels()[1].get_text()


def test_a_value_without_an_interval_is_hollow():
    known, unknown = np.array([0.8, 0.7]), np.array([0.6, np.nan])
    figure = forest_figure(["a", "b"], [ForestSeries("model", known, unknown, unknown + 0.2)])
    filled, hollow = figure.axes[0].lines
    assert (list(filled.get_xdata()), list(hollow.get_xdata())) == ([0.8], [0.7])
    assert hollow.get_markerfacecolor() == "white" != filled.get_markerfacecolor()


def test_figure_of_one_label_has_its_five_panels():
    line = np.linspace(0, 1, 500)
    points = CalibrationPoints("a", line[:5], line[:5], line[:5], line[:5] + 0.1)
    figure = label_figure(
        Curve("a", line, np.sqrt(line), "AUROC"), Curve("a", line, line, "AP"), 0.1, points,
        DecisionCurve(line * 0.3, line, 1 - line, 0.1), (0.2, 0.8),
    )  # fmt: skip
    drawn = [axes for axes in figure.axes if axes.axison]
    assert len(drawn) == 5
    assert drawn[3].get_xlim()[1] == pytest.approx(0.3), "the used range is enlarged"
    assert len(figure_svg(figure)) < 60_000, "two dozen of them stand on one page"


def test_cell_with_interval_sorts_by_its_value_and_says_why_there_is_none():
    page = HtmlPage("title")
    rows = [[WithInterval(0.5, 0.4, 0.6)], [WithInterval(0.5, np.nan, np.nan, "why")],
            [WithInterval(np.nan, np.nan, np.nan, "because")]]  # fmt: skip
    page.table([Column("x", ".2f")], rows)
    html = page.html()
    assert (
        'data-sort="0.5">0.50<br><small>0.40\N{NO-BREAK SPACE}to\N{NO-BREAK SPACE}0.60</small>'
        in html
    )
    assert '0.50<br><small>\N{EN DASH}<sup title="why">a</sup></small>' in html
    assert '>\N{EN DASH}<sup title="because">b</sup></td>' in html

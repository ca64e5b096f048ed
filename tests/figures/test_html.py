"""Pages: self-contained, escaped, sortable, small."""

import re

import numpy as np
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.figures import Column, HtmlPage, Undefined, WithNote, roc_figure
from ecgfounder_train.figures.curves import Curve

NASTY = "<script>alert(1)</script> & \"quoted\" 'single'"


def curve():
    x = np.linspace(0, 1, 20)
    return Curve("label", x, np.sqrt(x), "AUROC 0.9")


def test_page_needs_no_network():
    page = HtmlPage("Title")
    page.section("One")
    page.figure(roc_figure([curve()]), "caption")
    page.figure(roc_figure([curve()]), "caption", image="png")
    text = page.html()
    assert "//" not in re.sub(r"base64,[^\"]*", "", text), "not even a namespace's address"
    assert "default-src 'none'" in text
    assert "<style>" in text
    assert "@media print" in text


def test_every_text_is_escaped():
    page = HtmlPage(NASTY, NASTY, banner=NASTY)
    page.section(NASTY)
    page.paragraph(NASTY)
    page.bullets([NASTY])
    page.cards([(NASTY, NASTY)])
    page.definitions({NASTY: NASTY})
    page.table(
        [Column(NASTY, hint=NASTY), Column("b", ".3f")],
        [[NASTY, Undefined(NASTY)], [WithNote(NASTY, NASTY), NASTY]],
        caption=NASTY,
    )
    page.figure(roc_figure([Curve(NASTY, *[np.array([0.0, 1.0])] * 2)]), NASTY, NASTY)
    page.figure(roc_figure([curve()]), NASTY, image="png")
    text = page.html(footer=NASTY)
    assert "alert(1)" in text
    assert "<script>alert" not in text
    assert not re.search(r'="[^"<>]*"quoted', text), "no attribute was left early"


def test_cells_sort_by_full_value_and_undefined_ones_last():
    page = HtmlPage("t")
    page.table(
        [Column("name"), Column("value", ".2f")],
        [["a", 0.123456], ["b", float("nan")], ["c", Undefined("no positives")], ["d", None]],
    )
    text = page.html()
    assert '<td class=number data-sort="0.123456">0.12</td>' in text
    assert "<td class=number>\N{EN DASH}</td>" in text
    assert '<td class=number>\N{EN DASH}<sup title="no positives">a</sup></td>' in text
    assert "<sup>a</sup> no positives</p>" in text
    assert "<td class=number></td>" in text
    assert '<table class="sortable"' in text


def test_totals_stand_below_what_is_sorted():
    page = HtmlPage("Title")
    page.table([Column("a"), Column("b", ",")], [["x", 1], ["y", 2]], totals=["all", 3])
    text = page.html()
    body, rest = text[text.index("<tbody>") :].split("</tbody>", 1)
    assert "all" not in body
    assert rest.startswith('<tfoot><tr><td data-sort="all">all</td>')
    with pytest.raises(UserError, match="1 cells for 2"):
        page.table([Column("a"), Column("b")], [], totals=["all"])


def test_row_of_another_length_is_refused():
    with pytest.raises(UserError, match="1 cells for 2 columns"):
        HtmlPage("t").table([Column("a"), Column("b")], [["x"]])


def test_true_scale_figure_keeps_its_millimetres():
    figure = roc_figure([curve()])
    page = HtmlPage("t", landscape=True)
    page.figure(figure, "caption", true_scale=True)
    text = page.html()
    assert f"width:{figure.get_figwidth() * 25.4:.2f}mm" in text
    assert "size: A4 landscape" in text


def test_contents_link_to_every_section():
    page = HtmlPage("t")
    for name in ("First", "Second"):
        page.section(name)
    targets = re.findall(r'href="#(\w+)"', page.html())
    assert targets == re.findall(r'<h2 id="(\w+)"', page.html())
    assert len(targets) == 2


def test_same_page_twice_gives_the_same_bytes(tmp_path):
    def build(name):
        page = HtmlPage("t")
        page.figure(roc_figure([curve()]), "caption")
        return page.write(tmp_path / name).read_bytes()

    assert build("one.html") == build("two.html")


def test_a_reason_that_repeats_is_one_footnote():
    page = HtmlPage("t")
    page.table([Column("a", ".1f")], [[Undefined("few")], [Undefined("none")], [Undefined("few")]])
    text = page.html()
    assert text.count("<sup>a</sup> few; <sup>b</sup> none") == 1
    assert text.count('title="few">a</sup>') == 2

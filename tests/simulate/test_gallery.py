"""The gallery: twenty-four diagnoses, small pictures, the same from the same seed."""

from pathlib import Path

import numpy as np
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.figures.ecg_strip import strip_figure, strip_png
from ecgfounder_train.simulate.gallery import FS, GALLERY, LEADS, gallery_ecgs, write_gallery
from ecgfounder_train.simulate.waveform import check_findings

DOCS = Path(__file__).parents[2] / "docs"


def test_there_are_24_diagnoses_that_can_be_drawn() -> None:
    assert len(GALLERY) == len({title for title, _ in GALLERY}) == 24
    for _, findings in GALLERY:
        check_findings(findings)


def test_a_gallery_is_pictures_and_a_page_that_shows_them(tmp_path: Path) -> None:
    pictures = write_gallery(tmp_path / "new" / "gallery", lambda *strip: repr(strip[3:]).encode())
    page = (tmp_path / "new" / "gallery" / "README.md").read_text()
    assert len(pictures) == 24
    assert all(f"({picture.name})" in page for picture in pictures)


def test_the_same_seed_gives_the_same_strips() -> None:
    _, first, texts = next(gallery_ecgs(3))
    _, second, _ = next(gallery_ecgs(3))
    assert np.array_equal(first, second)
    assert first.shape == (12, 5000)
    assert "normal sinus rhythm" in texts


def test_a_strip_as_png_is_small(tmp_path: Path) -> None:
    title, signal, texts = next(gallery_ecgs())
    picture = strip_png(strip_figure(signal, FS, LEADS, title, texts))
    assert picture.startswith(b"\x89PNG")
    assert 5_000 < len(picture) < 60_000


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="gallery="):
        write_gallery(tmp_path / "file" / "gallery", lambda *strip: b"")


def test_the_gallery_in_the_docs_is_complete_and_small() -> None:
    pictures = sorted((DOCS / "gallery").glob("*.png"))
    assert len(pictures) == 24
    assert sum(picture.stat().st_size for picture in pictures) < 1_000_000

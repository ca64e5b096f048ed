"""Twenty-four diagnoses to look at: one strip each, and a page that shows them all."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.simulate.anatomy import Anatomy
from ecgfounder_train.simulate.dictionary import STATEMENTS
from ecgfounder_train.simulate.events import Findings
from ecgfounder_train.simulate.faults import LEADS
from ecgfounder_train.simulate.statements import statements
from ecgfounder_train.simulate.waveform import simulate_ecg

FS = 500.0
Draw = Callable[[np.ndarray, float, Sequence[str], str, str], bytes]

GALLERY: tuple[tuple[str, Findings], ...] = (
    ("Normal sinus rhythm", Findings("sinus", 68.0)),
    ("Atrial fibrillation", Findings("atrial_fibrillation", 92.0)),
    ("Atrial flutter, 2:1", Findings.of("two_to_one", rhythm="atrial_flutter", rate_bpm=145.0)),
    ("Supraventricular tachycardia", Findings("svt", 170.0)),
    ("Ventricular tachycardia", Findings("vt", 155.0)),
    ("Premature ventricular complexes", Findings.of("pvc")),
    ("Ventricular bigeminy", Findings.of("bigeminy")),
    ("First degree AV block", Findings.of("first_degree_av_block")),
    ("Second degree AV block, Mobitz I", Findings("mobitz_1", 58.0)),
    ("Complete heart block", Findings("complete_heart_block", 36.0)),
    ("Junctional rhythm", Findings.of("retrograde", rhythm="junctional", rate_bpm=52.0)),
    ("Ventricular pacing", Findings("paced_ventricular", 70.0)),
    ("Dual chamber pacing", Findings("paced_dual", 66.0)),
    ("Right bundle branch block", Findings.of("rbbb")),
    ("Left bundle branch block", Findings.of("lbbb")),
    ("Left anterior fascicular block", Findings.of("lafb")),
    ("Wolff-Parkinson-White", Findings.of("wpw")),
    ("Left ventricular hypertrophy with strain", Findings.of("lvh_strain")),
    ("Right ventricular hypertrophy", Findings.of("rvh", "rae")),
    ("Inferior infarct, age undetermined", Findings.of("inferior_infarct")),
    ("Anterior infarct, age undetermined", Findings.of("anterior_infarct")),
    ("Acute inferior injury", Findings.of("inferior_injury")),
    ("Acute pericarditis", Findings.of("pericarditis", rate_bpm=92.0)),
    ("Prolonged QT", Findings.of("long_qt")),
)


def gallery_ecgs(seed: int = 0) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yield title, signal (12, T) in mV at `FS`, and the statements of every diagnosis."""
    for number, (title, findings) in enumerate(GALLERY):
        rng = np.random.default_rng((seed, number))
        codes, _ = statements(rng, findings, weakened_share=0.0)
        texts = "; ".join(STATEMENTS[code][1].lower() for code in codes)
        anatomy = Anatomy.sample(rng, 58.0)
        yield title, simulate_ecg(rng, findings, FS, anatomy=anatomy, noise=0.7), texts


def write_gallery(folder: str | Path, draw: Draw, seed: int = 0) -> list[Path]:
    """Write one picture per diagnosis and `README.md` with all of them; return the pictures.

    Args:
        folder: Made if it does not exist; pictures of the same name are replaced.
        draw: Turns (signal in mV, fs, lead names, title, subtitle) into a PNG.
        seed: Another seed, other patients.

    Raises:
        UserError: The folder cannot be written.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"gallery={folder} cannot be written: {error.strerror}.") from error
    lines = ["# Twenty-four diagnoses of the simulated archive", ""]
    lines += ["Made by `python scripts/simulate.py gallery=docs/gallery`. No real person.", ""]
    pictures = []
    for number, (title, signal, texts) in enumerate(gallery_ecgs(seed), start=1):
        slug = "_".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
        path = folder / f"{number:02d}_{slug}.png"
        path.write_bytes(draw(signal, FS, LEADS, title, texts))
        lines += [f"## {title}", "", f"![{title}]({path.name})", ""]
        pictures.append(path)
    (folder / "README.md").write_text("\n".join(lines[:-1]) + "\n")
    return pictures

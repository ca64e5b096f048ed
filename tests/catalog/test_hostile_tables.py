"""Damaged tables: whatever stands in them, totals add up or the mistake is named; nothing crashes.

A few hundred mutations in the quick tier, 5,000 with ECG_TEST_TIER=all.
"""

import os
import random
import shutil
from pathlib import Path

import pytest

from ecgfounder_train.catalog import build_catalog
from ecgfounder_train.core.errors import RejectReason, UserError
from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.records.sources import open_source
from ecgfounder_train.simulate import write_archive
from ecgfounder_train.splits import PatientSplit

ROUNDS = 5_000 if os.environ.get("ECG_TEST_TIER") == "all" else 200
TABLES = (
    "ECG/I0001/metadata/metadata.csv",
    "ECG/I0001/12SL_diagnoses/diagnoses_acquisition.csv",
    "ECG/I0001/12SL_diagnoses/diagnoses_v24.csv",
    "ECG/I0006/metadata/metadata.csv",
    "ECG/I0006/12SL_diagnoses/diagnoses_acquisition.csv",
    "PatientMergeHistory/PatientMergeHistory.csv",
)
SCRAPS = (
    *(b'"', b",", b"\n", b"\r", b"\0", b"\xff\xfe", b'""', b"nan", b"-1e308", b"1e400", b"  "),
    *(b"../../x", "é\u2028".encode(), b";", b"9" * 40, b"'", b"\\", b"inf", b"\t"),
)
SECRET, VOCABULARY, SPLIT = Secret(b"0" * 32), Vocabulary.load("ecgfounder150"), PatientSplit()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hostile") / "heedb"
    write_archive({"out": out, "write_signals": False, "num_patients": 12, "seed": 1})
    return out


def damage(content: bytes, draw: random.Random) -> bytes:
    """Return the table with one to five bytes, cells or lines changed, doubled, lost or mixed."""
    for _ in range(draw.randint(1, 5)):
        place = draw.randrange(len(content) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            content = content[:place] + draw.choice(SCRAPS) + content[place:]
        elif kind == 1:
            content = content[:place] + content[place + draw.randint(1, 40) :]
        elif kind == 2:
            content = content[:place]
        else:
            lines = content.split(b"\n")
            one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
            if kind == 3:
                lines.insert(one, lines[other])
            elif kind == 4:
                lines[one], lines[other] = lines[other], lines[one]
            else:
                cells = lines[one].split(b",")
                cells[draw.randrange(len(cells))] = draw.choice(SCRAPS)
                lines[one] = b",".join(cells)
            content = b"\n".join(lines)
        if not content:
            break
    return content


def test_damaged_rows_never_crash_and_totals_always_add_up(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "heedb"
    shutil.copytree(archive, root)
    named, built = 0, 0
    for number in range(ROUNDS):
        draw = random.Random(number)
        path = draw.choice(TABLES)
        (root / path).write_bytes(damage((archive / path).read_bytes(), draw))
        label_source = draw.choice(["physician", "software", "v24", "physician_else_software"])
        try:
            source = open_source({"name": "heedb", "root": root, "label_source": label_source})
            catalog = build_catalog(
                source.read(), VOCABULARY, SECRET, SPLIT, source_name=f"damaged {number}"
            )
        except UserError as error:
            assert len(str(error)) > 20
            named += 1
        else:
            total = catalog.summary
            assert set(total["rejected"]) <= set(RejectReason)
            rejected = sum(total["rejected"].values())
            assert total["found"] == total["with_label"] + total["unlabelled"] + rejected
            assert total["found"] == catalog.frame.height
            assert catalog.frame["record_key"].n_unique() == catalog.frame.height
            built += 1
        shutil.copyfile(archive / path, root / path)
    assert named > 0
    assert built > ROUNDS // 2

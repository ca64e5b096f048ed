"""Label maps: every row is justified, names known labels only, and says what is left open."""

import csv

import numpy as np
import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.labels import Vocabulary, label_names
from ecgfounder_train.labels.maps import LabelMap, label_families, map_names
from ecgfounder_train.labels.maps.label_map import FOLDER


def load(name, variant="ours"):
    vocabulary, data_set = name.split(".")
    return LabelMap.load(data_set, vocabulary, label_names(vocabulary), variant)


@pytest.mark.parametrize("name", map_names())
def test_every_label_of_the_model_has_a_row_with_a_justification(name):
    vocabulary = name.split(".")[0]
    with open(FOLDER / f"{name}.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["label"] for row in rows] == list(label_names(vocabulary))
    assert all(row["justification"] for row in rows)
    assert all(row["agreement"] for row in rows if row["implies"])
    mapped = load(name)
    assert set(mapped.evaluated) | set(mapped.excluded) == set(label_names(vocabulary))


def test_ptbxl_map_uses_only_statements_that_ptbxl_has():
    axis = {
        f"heart_axis={value}"
        for value in ("MID", "LAD", "ALAD", "RAD", "ARAD", "AXL", "AXR", "SAG")
    }
    known = {*label_names("ptbxl_all71"), *axis, "*"}
    for variant in ("ours", "published"):
        for entry in load("ecgfounder150.ptbxl", variant).entries:
            for part in (*entry.implies, *entry.excludes, *entry.leaves_open):
                assert set(part) <= known


def test_published_map_repeats_the_known_mistakes_and_ours_does_not():
    published, ours = load("ecgfounder150.ptbxl", "published"), load("ecgfounder150.ptbxl")
    assert len(published.entries) == 31
    wrong = {"VENTRICULAR TACHYCARDIA", "SEPTAL INFARCT", "QT HAS LENGTHENED", "WITH QRS WIDENING"}
    assert wrong <= set(published.evaluated)
    assert not wrong & set(ours.evaluated)
    column = published.evaluated.index("VENTRICULAR TACHYCARDIA")
    assert published.targets([["SVTAC"]])[0][0, column] == 1
    assert "supraventricular" in ours.excluded["VENTRICULAR TACHYCARDIA"]


def answer(mapped, label, statements, site=None):
    targets, observed = mapped.targets([statements], [site])
    column = mapped.evaluated.index(label)
    return int(targets[0, column]) if observed[0, column] else None


def test_what_a_statement_leaves_open_is_unobserved_not_negative():
    mapped = load("ecgfounder150.ptbxl")
    assert answer(mapped, "NORMAL SINUS RHYTHM", ["SR", "NORM"]) == 1
    assert answer(mapped, "NORMAL SINUS RHYTHM", ["SR", "LVH"]) is None
    assert answer(mapped, "NORMAL SINUS RHYTHM", ["AFIB"]) == 0
    assert answer(mapped, "BIFASCICULAR BLOCK", ["CRBBB", "LAFB"]) == 1
    assert answer(mapped, "BIFASCICULAR BLOCK", ["CRBBB"]) == 0
    assert answer(mapped, "SINUS RHYTHM", None) is None


def test_a_site_that_never_states_a_finding_does_not_deny_it():
    mapped = load("ecgfounder150.cinc2021")
    assert answer(mapped, "LEFT AXIS DEVIATION", ["RBBB"], "cpsc_2018") is None
    assert answer(mapped, "LEFT AXIS DEVIATION", ["RBBB"], "georgia") == 0
    assert answer(mapped, "RIGHT BUNDLE BRANCH BLOCK", ["RBBB"], "cpsc2018") == 1


def test_hedged_texts_leave_the_answer_open():
    mapped = load("ecgfounder150.mimic")
    assert answer(mapped, "INFERIOR INFARCT", ["Inferior infarct - age undetermined"]) == 1
    assert answer(mapped, "INFERIOR INFARCT", ["Possible inferior infarct - age old"]) is None
    assert answer(mapped, "BORDERLINE ECG", ["Borderline ECG"]) == 1
    assert (
        answer(mapped, "RIGHT BUNDLE BRANCH BLOCK", ["Incomplete right bundle branch block"]) == 0
    )
    assert (
        answer(mapped, "WITH 1ST DEGREE AV BLOCK", ["Sinus rhythm with 1st degree A-V block"]) == 1
    )


@pytest.mark.parametrize(
    ("label", "statement", "expected"),
    [
        ("PREMATURE ATRIAL COMPLEXES", "Sinus rhythm with PAC(s)", 1),
        ("PREMATURE ATRIAL COMPLEXES", "Sinus rhythm with possible PACs", None),
        ("PREMATURE ATRIAL COMPLEXES", "Sinus rhythm without PACs", 0),
        ("SINUS RHYTHM", "Sinus rhythm with possible PACs", 1),
        ("SINUS RHYTHM", "Probable sinus rhythm", None),
        ("SINUS RHYTHM", "Sinus rhythm, no acute ST changes", 1),
        ("SINUS RHYTHM", "No acute ST changes, sinus rhythm", 1),
        ("ATRIAL FIBRILLATION", "No atrial fibrillation", 0),
        ("ATRIAL FIBRILLATION", "Atrial fibrillation no longer present", 0),
        ("ATRIAL FIBRILLATION", "Atrial fibrillation or flutter", None),
        ("ATRIAL FIBRILLATION", "Consider atrial fibrillation", None),
        ("INFERIOR INFARCT", "Inferior infarct, possibly acute", 1),
        ("INFERIOR INFARCT", "Inferior infarct cannot be excluded", None),
        ("INFERIOR INFARCT", "Q waves suggest inferior infarct", None),
        ("WITH 1ST DEGREE AV BLOCK", "Sinus rhythm with borderline 1st degree A-V block", None),
        ("NORMAL ECG", "Normal ECG except for rate", None),
        ("NORMAL ECG", "Normal ECG.", 1),
        ("LEFT BUNDLE BRANCH BLOCK", "Pacemaker rhythm - no further analysis", None),
        ("LEFT BUNDLE BRANCH BLOCK", "--- Recording unsuitable for analysis - please repeat ---",
         None),
        ("LEFT BUNDLE BRANCH BLOCK", "--- Warning: Data quality may affect interpretation ---", 0),
    ],
)  # fmt: skip
def test_a_finding_counts_where_the_sentence_states_it(label, statement, expected):
    assert answer(load("ecgfounder150.mimic"), label, [statement]) == expected


def test_a_second_statement_decides_what_the_first_leaves_open():
    mapped = load("ecgfounder150.mimic")
    both = ["Atrial fibrillation or flutter", "Atrial fibrillation"]
    assert answer(mapped, "ATRIAL FIBRILLATION", both) == 1
    paced = ["Ventricular-paced rhythm", "No further analysis"]
    assert answer(mapped, "VENTRICULAR-PACED RHYTHM", paced) == 1


def test_own_vocabulary_decides_by_its_own_rules():
    vocabulary = Vocabulary.load("ptbxl_super5")
    mapped = LabelMap.of_vocabulary(vocabulary, vocabulary.labels)
    statements = [["NORM", "SR"], ["SR"], None]
    targets, observed = mapped.targets(statements)
    for row, cell in enumerate(statements):
        values, known = vocabulary.encode(cell)
        np.testing.assert_array_equal(targets[row], values)
        np.testing.assert_array_equal(observed[row], known)


def test_a_model_of_the_data_sets_own_labels_is_read_through_the_map():
    mapped, vocabulary = load("ecgfounder150.ptbxl"), Vocabulary.load("ptbxl_all71")
    logits = np.arange(71, dtype=np.float32)[None]
    scores, absent = mapped.scores(logits, vocabulary)
    place = vocabulary.labels.index
    assert absent == [label for label in mapped.evaluated if "AXIS" in label]
    assert scores[0, mapped.evaluated.index("SUPRAVENTRICULAR TACHYCARDIA")] == place("PSVT")
    both = min(place("CRBBB"), place("LAFB"))
    column = mapped.evaluated.index("RBBB AND LEFT ANTERIOR FASCICULAR BLOCK")
    assert scores[0, column] == both


def test_a_vocabulary_that_extends_another_takes_over_its_map():
    mapped = LabelMap.load("cinc2017", "ptbxl_all71_super5", label_names("ptbxl_all71_super5"))
    assert mapped.evaluated == ("SR", "AFIB")
    assert mapped.excluded["superclass NORM"] == "not in the map"


def test_maps_that_cannot_be_meant_are_refused(tmp_path):
    labels = label_names("ptbxl_super5")
    path = tmp_path / "map.csv"
    path.write_text("label,ours\nNORMAL,x\n")
    with pytest.raises(UserError, match=r"row 2: the model has no label 'NORMAL'.*'NORM'"):
        LabelMap.load("mine", "ptbxl_super5", labels, str(path))
    path.write_text("label,ours\nMI,x\nMI,y\n")
    with pytest.raises(UserError, match="has a row already"):
        LabelMap.read(path, labels)
    path.write_text("label,ours\nMI,x||y\n")
    with pytest.raises(UserError, match="cannot read"):
        LabelMap.read(path, labels)
    path.write_text("label,ours\nMI,\n")
    with pytest.raises(UserError, match="maps no label"):
        LabelMap.read(path, labels)
    path.write_text("name,ours\n")
    with pytest.raises(UserError, match="no column 'label'"):
        LabelMap.read(path, labels)
    with pytest.raises(UserError, match="no label map from the vocabulary ptbxl_super5 to mimic"):
        LabelMap.load("mimic", "ptbxl_super5", labels)
    with pytest.raises(UserError, match="no published map"):
        load("ecgfounder150.mimic", "published")
    with pytest.raises(UserError, match="'published'"):
        load("ecgfounder150.ptbxl", "publishd")


def test_families_hold_the_labels_of_a_vocabulary_that_are_mistaken_for_one_another():
    families = label_families(label_names("ecgfounder150"))
    assert "RIGHT BUNDLE BRANCH BLOCK" in families["ventricular conduction"]
    assert label_families(("NORM",)) == {}

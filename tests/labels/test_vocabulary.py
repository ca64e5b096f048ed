"""Vocabularies: official order, values and observed, options, a user's own file."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.labels import Vocabulary, label_names, pack, unpack, vocabulary_names

RBBB, IRBBB, LAFB = (
    "RIGHT BUNDLE BRANCH BLOCK",
    "INCOMPLETE RIGHT BUNDLE BRANCH BLOCK",
    "LEFT ANTERIOR FASCICULAR BLOCK",
)


def positives(vocabulary: Vocabulary, *statements: str) -> set[str]:
    values, _ = vocabulary.encode(statements)
    return {vocabulary.labels[i] for i in np.flatnonzero(values)}


def unobserved(vocabulary: Vocabulary, *statements: str) -> set[str]:
    _, observed = vocabulary.encode(statements)
    return {vocabulary.labels[i] for i in np.flatnonzero(observed == 0)}


def test_the_150_labels_stand_in_official_order() -> None:
    labels = label_names("ecgfounder150")
    assert len(labels) == 150
    assert labels[:3] == ("ABNORMAL ECG", "NORMAL SINUS RHYTHM", "NORMAL ECG")
    assert labels[7] == "otherwise normal ecg"
    assert labels[87] == "ACUTE MI / STEMI"
    assert labels[149] == "MULTIFOCAL ATRIAL TACHYCARDIA"


def test_sizes_of_the_shipped_vocabularies() -> None:
    sizes = {name: len(label_names(name)) for name in vocabulary_names()}
    assert sizes == {
        "cinc2017": 4,
        "cinc2021": 26,
        "code": 6,
        "ecgfounder150": 150,
        "ptbxl_all71": 71,
        "ptbxl_super5": 5,
        "ptbxl_all71_super5": 76,
    }


@pytest.mark.real_data
def test_ptbxl_labels_equal_the_published_statement_table(real_data: Path) -> None:
    table = pl.read_csv(real_data / "ptbxl100" / "scp_statements.csv")
    assert label_names("ptbxl_all71") == tuple(table[table.columns[0]])
    assert label_names("ptbxl_super5") == ("NORM", "MI", "STTC", "CD", "HYP")
    for code, diagnostic, superclass in table.select(
        table.columns[0], "diagnostic", "diagnostic_class"
    ).iter_rows():
        expected = {superclass} if diagnostic else set()
        assert positives(Vocabulary.load("ptbxl_super5"), code) == expected


def test_missing_over_read_is_unobserved_not_negative() -> None:
    values, observed = Vocabulary.load("ecgfounder150").encode(None)
    assert not values.any()
    assert not observed.any()


def test_a_read_record_is_observed_for_every_label() -> None:
    values, observed = Vocabulary.load("ecgfounder150").encode(["22", "1684"])
    assert observed.all()
    assert values.sum() == 3  # SINUS RHYTHM holds with NORMAL SINUS RHYTHM


def test_code_cells_that_went_through_pandas_still_match() -> None:
    vocabulary = Vocabulary.load("ecgfounder150")
    assert positives(vocabulary, " 299.0", "390 ") == positives(vocabulary, "299", "390")


@pytest.mark.parametrize(
    ("code", "main", "both"),
    [
        ("371", "ABNORMAL LEFT AXIS DEVIATION", "LEFT AXIS DEVIATION"),
        ("381", "ABNORMAL RIGHT AXIS DEVIATION", "RIGHT AXIS DEVIATION"),
        ("821", "ACUTE MI / STEMI", "ACUTE MI"),
    ],
)
def test_a_main_code_decides_where_a_code_belongs_to_two_labels(
    code: str, main: str, both: str
) -> None:
    assert positives(Vocabulary.load("ecgfounder150", closure="none"), code) == {main}
    every = Vocabulary.load("ecgfounder150", closure="none", alternatives="all")
    assert positives(every, code) == {main, both}


def test_an_unclaimed_alternative_counts_unless_switched_off() -> None:
    assert positives(Vocabulary.load("ecgfounder150"), "273") == {"ATRIAL FLUTTER"}
    assert not positives(Vocabulary.load("ecgfounder150", alternatives="none"), "273")


def test_substring_match_fires_on_containing_texts_as_the_notebook_does() -> None:
    vocabulary = Vocabulary.load("ecgfounder150", match="substring")
    assert positives(vocabulary, "1699") == {"ABNORMAL ECG", "NORMAL ECG"}
    assert positives(vocabulary, "445") == {RBBB, IRBBB}
    assert positives(vocabulary, "Sinus  bradycardia") == {"SINUS BRADYCARDIA"}
    assert positives(Vocabulary.load("ecgfounder150"), "445") == {IRBBB}


@pytest.mark.parametrize(
    ("codes", "labels"),
    [
        (["22", "478"], {"NORMAL SINUS RHYTHM", "SINUS RHYTHM", RBBB, LAFB, "BIFASCICULAR BLOCK",
                         "RBBB AND LEFT ANTERIOR FASCICULAR BLOCK"}),
        (["479"], {RBBB, "LEFT POSTERIOR FASCICULAR BLOCK", "BIFASCICULAR BLOCK",
                   "RBBB AND LEFT POSTERIOR FASCICULAR BLOCK"}),
        (["24"], {"MARKED SINUS BRADYCARDIA", "SINUS BRADYCARDIA"}),
        (["252"], {"WITH MARKED SINUS ARRHYTHMIA", "WITH SINUS ARRHYTHMIA"}),
        (["810"], {"ANTEROSEPTAL INFARCT", "ANTERIOR INFARCT", "SEPTAL INFARCT"}),
        (["820"], {"ANTEROLATERAL INFARCT", "ANTERIOR INFARCT", "LATERAL INFARCT"}),
        (["801"], {"INFERIOR-POSTERIOR INFARCT", "INFERIOR INFARCT", "POSTERIOR INFARCT"}),
        (["369"], {"BIATRIAL ENLARGEMENT", "LEFT ATRIAL ENLARGEMENT", "RIGHT ATRIAL ENLARGEMENT"}),
        (["570"], {"BIVENTRICULAR HYPERTROPHY", "LEFT VENTRICULAR HYPERTROPHY",
                   "RIGHT VENTRICULAR HYPERTROPHY"}),
        (["297"], {"ATRIAL-SENSED VENTRICULAR-PACED RHYTHM", "VENTRICULAR-PACED RHYTHM"}),
        (["371"], {"ABNORMAL LEFT AXIS DEVIATION", "LEFT AXIS DEVIATION"}),
        (["232"], {"PREMATURE VENTRICULAR AND FUSION COMPLEXES", "FUSION COMPLEXES",
                   "PREMATURE VENTRICULAR COMPLEXES"}),
        (["445"], {IRBBB}),
        (["1699"], {"ABNORMAL ECG"}),
    ],
)  # fmt: skip
def test_a_statement_sets_by_default_the_labels_it_implies_and_no_other(
    codes: list[str], labels: set[str]
) -> None:
    assert positives(Vocabulary.load("ecgfounder150"), *codes) == labels


@pytest.mark.real_data
def test_substring_match_reproduces_the_published_containments(real_data: Path) -> None:
    pairs = pl.read_csv(real_data.parent / "reference" / "label_containment.csv")
    vocabulary = Vocabulary.load("ecgfounder150", match="substring", closure="none")
    expected = set(pairs.select("contained_label", "containing_label").iter_rows())
    found = {
        (contained, label)
        for label in vocabulary.labels
        for contained in positives(vocabulary, label) - {label}
    }
    assert found == expected


def test_substring_match_reads_the_dictionary_of_the_source() -> None:
    vocabulary = Vocabulary.load("ecgfounder150", match="substring")
    assert not positives(vocabulary, "99999")
    told = vocabulary.with_texts({"99999": "Atrial fibrillation with something new"})
    assert positives(told, "99999") == {"ATRIAL FIBRILLATION"}


def test_closure_sets_what_a_label_implies() -> None:
    plain, closed = (Vocabulary.load("ecgfounder150", closure=c) for c in ("none", "parents"))
    assert positives(plain, "478") == {"RBBB AND LEFT ANTERIOR FASCICULAR BLOCK"}
    assert {RBBB, LAFB} < positives(closed, "478")
    assert positives(closed, "22") == {"NORMAL SINUS RHYTHM", "SINUS RHYTHM"}


PUBLISHED = {"match": "substring", "closure": "none"}


@pytest.mark.parametrize(
    ("code", "published"),
    [
        ("22", {"NORMAL SINUS RHYTHM", "SINUS RHYTHM"}),
        ("24", {"MARKED SINUS BRADYCARDIA", "SINUS BRADYCARDIA"}),
        ("478", {"RBBB AND LEFT ANTERIOR FASCICULAR BLOCK", LAFB}),
        ("445", {IRBBB, RBBB}),
        ("810", {"ANTEROSEPTAL INFARCT", "SEPTAL INFARCT"}),
        ("801", {"INFERIOR-POSTERIOR INFARCT", "POSTERIOR INFARCT"}),
        ("369", {"BIATRIAL ENLARGEMENT"}),
        ("570", {"BIVENTRICULAR HYPERTROPHY"}),
        ("271", {"SUPRAVENTRICULAR TACHYCARDIA", "VENTRICULAR TACHYCARDIA"}),
        ("1699", {"ABNORMAL ECG", "NORMAL ECG"}),
    ],
)
def test_published_labels_of_the_documented_statements(code: str, published: set[str]) -> None:
    assert positives(Vocabulary.load("ecgfounder150", **PUBLISHED), code) == published


@pytest.mark.parametrize("name", vocabulary_names())
def test_every_code_of_another_system_has_the_grade_of_its_match(name: str) -> None:
    grades = ("exact", "broader", "narrower", "related")
    for entry in Vocabulary.load(name).entries:
        for system in ("snomed", "scp"):
            code, grade = entry.notes[system], entry.notes[f"{system}_match"]
            assert grade in grades if code else not grade


@pytest.mark.real_data
def test_codes_of_other_systems_are_in_the_published_lists(real_data: Path) -> None:
    scored, unscored = (
        pl.read_csv(real_data / "cinc2021" / f"dx_mapping_{part}.csv", infer_schema=False)
        for part in ("scored", "unscored")
    )
    snomed = {*scored["SNOMEDCTCode"], *unscored["SNOMEDCTCode"], ""}
    scp = {*label_names("ptbxl_all71"), ""}
    for name in vocabulary_names():
        for entry in Vocabulary.load(name).entries:
            assert entry.notes["snomed"] in snomed and entry.notes["scp"] in scp, entry.name


def test_closure_reaches_grandparents(tmp_path: Path) -> None:
    path = tmp_path / "family.csv"
    path.write_text("label,codes,parents\na,1,b\nb,2,c\nc,3,\n")
    assert positives(Vocabulary.load(path, closure="parents"), "1") == {"a", "b", "c"}


@pytest.mark.parametrize("weakener", ["1680", "1682"])
def test_weakened_statement_follows_the_option(weakener: str) -> None:
    cell = (weakener, "700", "831", "1699")
    rest = {"ABNORMAL ECG"}
    septal = {"SEPTAL INFARCT"}
    by_option = {o: Vocabulary.load("ecgfounder150", weakened=o) for o in
                 ("positive", "unobserved", "negative")}  # fmt: skip
    assert positives(by_option["positive"], *cell) == rest | septal
    assert positives(by_option["unobserved"], *cell) == rest
    assert unobserved(by_option["unobserved"], *cell) == septal
    assert positives(by_option["negative"], *cell) == rest
    assert not unobserved(by_option["negative"], *cell)


def test_only_the_statement_right_after_is_weakened() -> None:
    vocabulary = Vocabulary.load("ecgfounder150", weakened="negative")
    assert positives(vocabulary, "700", "1682", "740", "760") == {
        "SEPTAL INFARCT",
        "LATERAL INFARCT",
    }


def test_a_firm_statement_outweighs_the_weakened_one() -> None:
    vocabulary = Vocabulary.load("ecgfounder150", weakened="unobserved")
    assert positives(vocabulary, "1682", "700", "700") == {"SEPTAL INFARCT"}
    assert not unobserved(vocabulary, "1682", "700", "700")


def test_a_weakened_child_leaves_its_parents_open() -> None:
    vocabulary = Vocabulary.load("ecgfounder150", weakened="unobserved", closure="parents")
    assert unobserved(vocabulary, "1680", "810") == {
        "ANTEROSEPTAL INFARCT",
        "ANTERIOR INFARCT",
        "SEPTAL INFARCT",
    }


def test_codes_with_a_weakening_text_and_texts_that_open_with_one_weaken_too() -> None:
    coded = Vocabulary.load("ecgfounder150", weakened="negative").with_texts({"9": "Possible "})
    assert not positives(coded, "9", "700")
    text = Vocabulary.load("ecgfounder150", match="substring", weakened="negative")
    assert not positives(text, "Cannot rule out septal infarct")
    assert positives(text, "septal infarct") == {"SEPTAL INFARCT"}


def test_a_weakener_at_the_end_does_not_reach_into_the_next_record() -> None:
    vocabulary = Vocabulary.load("ecgfounder150", weakened="negative")
    both = vocabulary.encode_many(pl.Series([["22", "1682"], ["700"]]))
    assert unpack(both.values, 150)[1, vocabulary.labels.index("SEPTAL INFARCT")] == 1


def test_record_without_a_superclass_is_unobserved_there_and_observed_elsewhere() -> None:
    assert len(unobserved(Vocabulary.load("ptbxl_super5"), "SR")) == 5
    assert not unobserved(Vocabulary.load("ptbxl_super5"), "SR", "NORM")
    both = Vocabulary.load("ptbxl_all71_super5")
    assert unobserved(both, "SR") == {n for n in both.labels if n.startswith("superclass ")}
    assert positives(both, "SR", "IMI") == {"SR", "IMI", "superclass MI"}


def test_cinc2021_scores_equivalent_codes_as_one_label() -> None:
    vocabulary = Vocabulary.load("cinc2021")
    for one, other in [
        ("713427006", "59118001"),
        ("733534002", "164909002"),
        ("284470004", "63593006"),
        ("427172004", "17338001"),
    ]:
        assert positives(vocabulary, one) == positives(vocabulary, other) != set()


def test_many_records_encode_as_each_alone_and_statements_are_counted() -> None:
    vocabulary = Vocabulary.load("ecgfounder150", weakened="unobserved")
    cells = [["22", "1684"], None, [], ["1682", "700", "nothing"], ["22"]]
    encoded = vocabulary.encode_many(pl.Series(cells, dtype=pl.List(pl.String)))
    for row, cell in enumerate(cells):
        values, observed = vocabulary.encode(cell)
        np.testing.assert_array_equal(unpack(encoded.values[row], 150), values)
        np.testing.assert_array_equal(unpack(encoded.observed[row], 150), observed)
    assert encoded.statement_counts == {"22": 2, "1684": 1, "1682": 1, "700": 1, "nothing": 1}
    assert not vocabulary.knows("nothing")


@given(st.lists(st.one_of(st.none(), st.lists(st.text(max_size=6), max_size=5)), max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_statements_give_values_only_where_observed(cells: list[list[str] | None]) -> None:
    for options in ({"weakened": "unobserved"}, {"match": "substring", "closure": "parents"}):
        vocabulary = Vocabulary.load("ecgfounder150", **options)
        encoded = vocabulary.encode_many(pl.Series(cells, dtype=pl.List(pl.String)))
        assert not (encoded.values & ~encoded.observed).any()
        for cell, observed in zip(cells, encoded.observed, strict=True):
            assert observed.any() == (cell is not None)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 200), st.randoms(use_true_random=False))
def test_unpack_undoes_pack(num_labels: int, random: object) -> None:
    flags = np.array([random.random() < 0.5 for _ in range(num_labels)], np.uint8)  # type: ignore[attr-defined]
    assert pack(flags).shape == ((num_labels + 7) // 8,)
    np.testing.assert_array_equal(unpack(pack(flags), num_labels), flags)


def test_fingerprint_follows_labels_codes_and_options_and_not_the_name(tmp_path: Path) -> None:
    def written(name: str, text: str) -> Vocabulary:
        (tmp_path / name).write_text(text)
        return Vocabulary.load(tmp_path / name)

    base = written("a.csv", "label,codes\nx,1|2\ny,3\n")
    assert written("b.csv", "label,codes\nx,1|2\ny,3\n").fingerprint == base.fingerprint
    others = [
        written("c.csv", "label,codes\ny,3\nx,1|2\n"),
        written("d.csv", "label,codes\nx,1\ny,3\n"),
        Vocabulary.load(tmp_path / "a.csv", weakened="negative"),
        Vocabulary.load(tmp_path / "a.csv", match="substring"),
    ]
    prints = {vocabulary.fingerprint for vocabulary in others}
    assert len(prints) == len(others)
    assert base.fingerprint not in prints


def test_a_user_adds_a_vocabulary_with_a_file_of_names_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("label\nAF\nother\n")
    vocabulary = Vocabulary.load(str(path))
    assert vocabulary.name == "mine"
    assert positives(vocabulary, "AF") == {"AF"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,codes\na,1\n", "no column 'label'"),
        ("label,codes\n", "holds no label"),
        ("label,codes\na,1\na,2\n", "twice: a"),
        ("label,codes\n,1\n", "row 2: the label is empty"),
        ("label,parents\nfirst,secnd\nsecond,\n", "Did you mean 'second'"),
        ("label,code\na,1\n", "Did you mean 'codes'"),
        ("label,role\na,lable\n", "neither 'label' nor 'weakener'"),
        ("label,observed_when\na,never\n", "neither 'statement'"),
        ("", "no column 'label'"),
    ],
)
def test_an_invalid_vocabulary_file_says_what_is_wrong(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        Vocabulary.load(path)


def test_a_binary_vocabulary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(b"label\n\xff\xfe\x00\x81\n")
    with pytest.raises(UserError, match="not a CSV file"):
        Vocabulary.load(path)


def test_unknown_names_and_options_suggest_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'ecgfounder150'"):
        Vocabulary.load("ecgfounder15")
    with pytest.raises(UserError, match="No vocabulary file"):
        Vocabulary.load("nowhere/mine.csv")
    with pytest.raises(UserError, match=r"labels\.weakened=unobservd.*'unobserved'"):
        Vocabulary.load("ecgfounder150", weakened="unobservd")
    with pytest.raises(UserError, match=r"labels\.matches.*'match'"):
        Vocabulary.from_config({"name": "ecgfounder150", "matches": "code"})
    with pytest.raises(UserError, match=r"labels\.name is missing"):
        Vocabulary.from_config({})

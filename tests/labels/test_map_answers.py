"""What typical and awkward statements mean for each label, as a cardiologist reads them."""

import pytest

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.labels import label_names
from ecgfounder_train.labels.maps import LabelMap
from ecgfounder_train.labels.maps.spelling import spelled

MAPS = {
    name: LabelMap.load(name, "ecgfounder150", label_names("ecgfounder150"))
    for name in ("mimic", "cinc2021", "ptbxl", "ludb")
}


def answer(data_set, label, statements, site="georgia"):
    mapped = MAPS[data_set]
    targets, observed = mapped.targets([statements], [site])
    column = mapped.evaluated.index(label)
    return int(targets[0, column]) if observed[0, column] else None


@pytest.mark.parametrize(
    ("statements", "answers"),
    [
        (["Sinus rhythm", "Normal ECG"],
         {"NORMAL SINUS RHYTHM": 1, "SINUS RHYTHM": 1, "NORMAL ECG": 1, "ATRIAL FIBRILLATION": 0}),
        (["Sinus rhythm", "Abnormal ECG"], {"NORMAL SINUS RHYTHM": None, "NORMAL ECG": 0}),
        (["Normal ECG"], {"SINUS RHYTHM": None, "ATRIAL FIBRILLATION": 0}),
        (["Left bundle branch block"], {"SINUS RHYTHM": None, "ATRIAL FIBRILLATION": None}),
        (["Sinus arrhythmia"], {"WITH SINUS ARRHYTHMIA": 1, "SINUS RHYTHM": None}),
        (["Sinus or ectopic atrial rhythm"], {"SINUS RHYTHM": None, "ECTOPIC ATRIAL RHYTHM": None}),
        (["Marked sinus bradycardia"],
         {"MARKED SINUS BRADYCARDIA": 1, "SINUS BRADYCARDIA": 1, "SINUS RHYTHM": 0}),
        (["Possible ectopic atrial rhythm"], {"ECTOPIC ATRIAL RHYTHM": None}),
        (["Afib/flutter and V-paced complexes"],
         {"ATRIAL FIBRILLATION": None, "ATRIAL FLUTTER": None, "VENTRICULAR-PACED COMPLEXES": 1,
          "SINUS RHYTHM": 0}),
        (["A-fib with rapid ventricular response"],
         {"ATRIAL FIBRILLATION": 1, "WITH RAPID VENTRICULAR RESPONSE": 1}),
    ],
)  # fmt: skip
def test_rhythms(statements, answers):
    assert {label: answer("mimic", label, statements) for label in answers} == answers


@pytest.mark.parametrize(
    ("statement", "answers"),
    [
        ("Left ventricular hypertrophy by voltage only",
         {"LEFT VENTRICULAR HYPERTROPHY": None,
          "VOLTAGE CRITERIA FOR LEFT VENTRICULAR HYPERTROPHY": 1}),
        ("Voltage criteria for LVH", {"LEFT VENTRICULAR HYPERTROPHY": None}),
        ("Biventricular hypertrophy",
         {"LEFT VENTRICULAR HYPERTROPHY": 1, "RIGHT VENTRICULAR HYPERTROPHY": 1}),
        ("Possible bi-ventricular hypertrophy",
         {"LEFT VENTRICULAR HYPERTROPHY": None, "RIGHT VENTRICULAR HYPERTROPHY": None}),
        ("Bi-atrial enlargement", {"LEFT ATRIAL ENLARGEMENT": 1, "RIGHT ATRIAL ENLARGEMENT": 1}),
        ("Biatrial abnormality", {"BIATRIAL ENLARGEMENT": 1, "RIGHT ATRIAL ENLARGEMENT": 1}),
        ("Consider left atrial abnormality", {"LEFT ATRIAL ENLARGEMENT": None}),
        ("Lateral ST-T abnormality is probably due to the ventricular hypertrophy",
         {"LEFT VENTRICULAR HYPERTROPHY": None, "WITH REPOLARIZATION ABNORMALITY": None}),
    ],
)  # fmt: skip
def test_chambers(statement, answers):
    assert {label: answer("mimic", label, [statement]) for label in answers} == answers


@pytest.mark.parametrize(
    ("statement", "positive"),
    [
        ("Inferolateral infarct - age undetermined", {"INFERIOR", "LATERAL"}),
        ("Infero-lateral MI, old", {"INFERIOR", "LATERAL"}),
        ("Inferior and lateral myocardial infarction", {"INFERIOR", "LATERAL"}),
        ("Inferior/posterior infarct", {"INFERIOR", "POSTERIOR", "INFERIOR-POSTERIOR"}),
        ("Anterior-septal infarct", {"ANTERIOR", "SEPTAL", "ANTEROSEPTAL"}),
        ("Antero-lateral infarct", {"ANTERIOR", "LATERAL", "ANTEROLATERAL"}),
        ("Ant/septal and lateral infarct",
         {"ANTERIOR", "SEPTAL", "LATERAL", "ANTEROSEPTAL", "ANTEROLATERAL"}),
        ("Posterolateral infarct", {"POSTERIOR", "LATERAL"}),
        ("Inferior wall infarction", {"INFERIOR"}),
        ("Marked inferior ST depression accompanies the infarct", set()),
    ],
)  # fmt: skip
def test_combined_infarcts_are_infarcts_of_each_wall(statement, positive):
    walls = ("ANTERIOR", "SEPTAL", "LATERAL", "INFERIOR", "POSTERIOR", "ANTEROSEPTAL",
             "ANTEROLATERAL", "INFERIOR-POSTERIOR")  # fmt: skip
    said = {wall for wall in walls if answer("mimic", f"{wall} INFARCT", [statement]) == 1}
    assert said == positive


@pytest.mark.parametrize(
    "statement",
    ["Extensive infarct - age undetermined", "Cannot rule out anterior infarct",
     "Anterior infarct cannot be excluded", "QRS changes may be due to LVH but cannot rule out "
     "anteroseptal infarct", "Anterior ST elevation, CONSIDER ACUTE INFARCT"],
)  # fmt: skip
def test_an_infarct_in_doubt_leaves_its_walls_open(statement):
    assert answer("mimic", "ANTERIOR INFARCT", [statement]) is None


@pytest.mark.parametrize(
    ("statement", "answers"),
    [
        ("Marked left axis deviation", {"LEFT AXIS DEVIATION": 1, "RIGHT AXIS DEVIATION": 0}),
        ("Severe right axis deviation",
         {"RIGHT AXIS DEVIATION": 1, "RIGHT SUPERIOR AXIS DEVIATION": None}),
        ("Leftward axis", {"LEFTWARD AXIS": 1, "LEFT AXIS DEVIATION": None}),
        ("QRS axis leftward for age", {"LEFTWARD AXIS": 1}),
        ("Rightward axis", {"RIGHTWARD AXIS": 1, "RIGHT AXIS DEVIATION": None}),
        ("Borderline left axis deviation", {"LEFTWARD AXIS": 1, "LEFT AXIS DEVIATION": None}),
        ("LAD, consider left anterior fascicular block",
         {"LEFT AXIS DEVIATION": 1, "LEFT ANTERIOR FASCICULAR BLOCK": None}),
        ("RBBB with RAD - possible left posterior fascicular block",
         {"RIGHT BUNDLE BRANCH BLOCK": 1, "RIGHT AXIS DEVIATION": 1,
          "LEFT POSTERIOR FASCICULAR BLOCK": None}),
        ("Incomplete RBBB", {"RIGHT BUNDLE BRANCH BLOCK": 0,
                             "INCOMPLETE RIGHT BUNDLE BRANCH BLOCK": 1}),
        ("RBBB and LAFB", {"BIFASCICULAR BLOCK": 1, "RBBB AND LEFT ANTERIOR FASCICULAR BLOCK": 1}),
        ("I.V. CONDUCTION DEFECT OF RIGHT BUNDLE BRANCH BLOCK TYPE",
         {"RIGHT BUNDLE BRANCH BLOCK": None, "NONSPECIFIC INTRAVENTRICULAR CONDUCTION DELAY": 1}),
        ("Sinus rhythm with borderline first-degree AV block", {"WITH 1ST DEGREE AV BLOCK": None}),
        ("Second degree AV block, Mobitz II", {"WITH 2ND DEGREE AV BLOCK MOBITZ I": 0}),
        ("2nd degree A-V block, Mobitz I (Wenckebach)", {"WITH 2ND DEGREE AV BLOCK MOBITZ I": 1,
                                                         "WITH 1ST DEGREE AV BLOCK": 0}),
        ("Third-degree heart block", {"WITH COMPLETE HEART BLOCK": 1}),
        ("Atrial flutter with 2:1 A-V block", {"WITH 2:1 AV CONDUCTION": 1, "ATRIAL FLUTTER": 1}),
        ("Short PR interval", {"WITH SHORT PR": 1}),
        ("WPW pattern - probable midseptal accessory pathway",
         {"WOLFF-PARKINSON-WHITE": 1, "WITH SHORT PR": None}),
        ("Prolonged PR interval", {"WITH 1ST DEGREE AV BLOCK": None}),
        ("*** CONSIDER ACUTE ST ELEVATION MI ***", {"ACUTE MI / STEMI": None, "ACUTE MI": None}),
        ("Acute STEMI", {"ACUTE MI / STEMI": 1, "ACUTE MI": 1}),
        ("Inferior subendocardial injury", {"INFERIOR INJURY PATTERN": 0}),
        ("ST elevation, consider inferior injury", {"INFERIOR INJURY PATTERN": None}),
        ("Inferior T wave changes are nonspecific", {"NONSPECIFIC T WAVE ABNORMALITY": 1}),
        ("Non-specific ST-T changes", {"NONSPECIFIC ST AND T WAVE ABNORMALITY": 1,
                                       "NONSPECIFIC ST ABNORMALITY": 1}),
    ],
)  # fmt: skip
def test_axis_conduction_and_repolarization(statement, answers):
    assert {label: answer("mimic", label, [statement]) for label in answers} == answers


PREMATURE = ("PREMATURE VENTRICULAR COMPLEXES", "PREMATURE ATRIAL COMPLEXES",
             "PREMATURE SUPRAVENTRICULAR COMPLEXES")  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "answers"),
    [
        ("Sinus rhythm with ventricular bigeminy", (1, 0, 0)),
        ("Ventricular trigeminy", (1, 0, 0)),
        ("Ventricular couplets", (1, 0, 0)),
        ("Paired ventricular premature complexes", (1, 0, 0)),
        ("Frequent VPCs", (1, 0, 0)),
        ("Atrial bigeminy", (0, 1, 1)),
        ("Atrial premature beats", (0, 1, 1)),
        ("Supraventricular bigeminy", (0, None, 1)),
        ("Bigeminy", (None, None, None)),
        ("Multiple premature complexes", (None, None, None)),
        ("Sinus rhythm with premature ventricular or aberrantly conducted complexes",
         (None, 0, 0)),
        ("Sinus rhythm without PVCs", (0, 0, 0)),
    ],
)  # fmt: skip
def test_premature_complexes_by_origin(statement, answers):
    said = tuple(answer("mimic", label, [statement]) for label in PREMATURE)
    assert said == answers


@pytest.mark.parametrize(
    "statement",
    ["Ventricular-paced rhythm", "Ventricular paced rhythm", "V-paced rhythm",
     "VENTRICULAR PACING", "Atrial-sensed ventricular-paced rhythm"],
)  # fmt: skip
def test_ventricular_pacing_in_any_spelling(statement):
    assert answer("mimic", "VENTRICULAR-PACED RHYTHM", [statement]) == 1
    assert answer("mimic", "SINUS RHYTHM", [statement]) == 0
    assert answer("mimic", "ATRIAL FIBRILLATION", [statement]) is None


@pytest.mark.parametrize(
    ("code", "site", "answers"),
    [
        ("11157007", "georgia", {"PREMATURE VENTRICULAR COMPLEXES": 1}),
        ("251182009", "st_petersburg_incart", {"PREMATURE VENTRICULAR COMPLEXES": 1}),
        ("251170000", "ningbo", {"PREMATURE ATRIAL COMPLEXES": 1}),
        ("251164006", "ningbo", {"PREMATURE SUPRAVENTRICULAR COMPLEXES": 1}),
        ("233917008", "chapman_shaoxing",
         {"WITH 1ST DEGREE AV BLOCK": None, "WITH COMPLETE HEART BLOCK": None}),
        ("195126007", "georgia",
         {"LEFT ATRIAL ENLARGEMENT": None, "RIGHT ATRIAL ENLARGEMENT": None}),
        ("251223006", "ningbo", {"RIGHT ATRIAL ENLARGEMENT": None}),
        ("164867002", "cpsc_2018_extra", {"ANTERIOR INFARCT": None}),
        ("81898007", "ningbo", {"IDIOVENTRICULAR RHYTHM": 1}),
        ("164890007", "ningbo", {"ATRIAL FLUTTER": None, "ATRIAL FIBRILLATION": None}),
        ("164890007", "WFDB_Ningbo", {"ATRIAL FLUTTER": None}),
        ("164890007", "chapman_ningbo", {"ATRIAL FLUTTER": None}),
        ("164890007", "chapman_shaoxing", {"ATRIAL FLUTTER": 1, "ATRIAL FIBRILLATION": 0}),
        ("713427006", "georgia", {"SINUS RHYTHM": None, "RIGHT BUNDLE BRANCH BLOCK": 1}),
    ],
)  # fmt: skip
def test_codes_of_cinc2021(code, site, answers):
    assert {label: answer("cinc2021", label, [code], site) for label in answers} == answers


@pytest.mark.parametrize(
    ("statements", "answers"),
    [
        (["NORM"], {"SINUS RHYTHM": None, "SINUS BRADYCARDIA": None, "ATRIAL FIBRILLATION": 0}),
        (["IMI"], {"SINUS RHYTHM": None, "ATRIAL FIBRILLATION": None}),
        (["SR", "BIGU"], {"PREMATURE VENTRICULAR COMPLEXES": None, "IN A PATTERN OF BIGEMINY": 1}),
        (["SR", "TRIGU"], {"PREMATURE ATRIAL COMPLEXES": None}),
        (["IPLMI"], {f"{wall} INFARCT": 1
                     for wall in ("INFERIOR", "POSTERIOR", "LATERAL", "INFERIOR-POSTERIOR")}),
        (["LAO/LAE", "RAO/RAE"], {"BIATRIAL ENLARGEMENT": 1}),
        (["SR", "heart_axis=ALAD"], {"LEFT AXIS DEVIATION": 1, "RIGHT AXIS DEVIATION": 0}),
        (["SR", "heart_axis=LAD"], {"LEFT AXIS DEVIATION": None}),
        (["SR"], {"LEFT AXIS DEVIATION": None}),
    ],
)  # fmt: skip
def test_statements_of_ptbxl(statements, answers):
    assert {label: answer("ptbxl", label, statements) for label in answers} == answers


def test_subendocardial_injury_of_ptbxl_is_no_st_elevation():
    mapped = MAPS["ptbxl"]
    assert not [label for label in mapped.evaluated if "INJURY" in label]
    assert "subendocardial" in mapped.excluded["INFERIOR INJURY PATTERN"]
    assert {e.agreement for e in mapped.entries if e.label == "WITH PROLONGED AV CONDUCTION"} == {
        "proxy"
    }


@pytest.mark.parametrize(
    ("statement", "answers"),
    [
        ("Stemi: lateral wall", {"ACUTE MI / STEMI": 1, "ACUTE MI": 1, "LATERAL INFARCT": None}),
        ("Scar formation: septal", {"SEPTAL INFARCT": 1, "ANTERIOR INFARCT": 0}),
        ("Non-specific repolarization abnormalities: apical",
         {"NONSPECIFIC ST AND T WAVE ABNORMALITY": 1}),
        ("Electric axis of the heart: horizontal", {"LEFT AXIS DEVIATION": 0}),
    ],
)  # fmt: skip
def test_statements_of_ludb(statement, answers):
    assert {label: answer("ludb", label, [statement]) for label in answers} == answers


@pytest.mark.parametrize("site", ["training", "chapman", "", None])
def test_a_site_that_the_data_set_has_not_is_refused_with_those_it_has(site):
    with pytest.raises(UserError, match=r"is not one of cinc2021.*cpsc_2018.*ningbo"):
        answer("cinc2021", "SINUS RHYTHM", ["426783006"], site)


def test_the_site_is_found_in_the_path_where_the_root_is_one_level_up_or_down():
    paths = ["/data/training/ningbo/g1/JS1", "/data/georgia/g2/E1", "/data/training/x/A1"]
    found = MAPS["cinc2021"].named_sites(["training", "g2", "x"], paths)
    assert found == ["ningbo", "georgia", "x"]


def test_a_map_that_names_an_unknown_site_is_refused(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("label,implies,unobserved_at\nSINUS RHYTHM,426783006,ningpo\n")
    with pytest.raises(UserError, match=r"unobserved_at: The site 'ningpo'.*Did you mean 'ningbo'"):
        LabelMap.load("cinc2021", "ecgfounder150", label_names("ecgfounder150"), str(path))


def test_maps_with_the_former_column_names_are_read(tmp_path):
    path = tmp_path / "map.csv"
    path.write_text("label,ours,unobserved_if\nSINUS RHYTHM,a,b\n")
    mapped = LabelMap.read(path, label_names("ecgfounder150"))
    assert mapped.targets([["a"], ["b"], ["c"]])[1].ravel().tolist() == [1, 0, 1]


def test_statements_that_bear_on_no_label_are_counted_and_rare_ones_not_named():
    cells = [["SR", "ABQRS"]] * 12 + [["2AVB"]] + [None]
    coverage = MAPS["ptbxl"].coverage(cells)
    assert coverage.matched == {"SR": 12}
    assert coverage.unmatched == {"ABQRS": 12, "2AVB": 1}
    assert coverage.summary.endswith("bear on an evaluated label; not ABQRS (12) and 1 other.")


@pytest.mark.parametrize("vocabulary", ["ptbxl_all71", "cinc2021", "cinc2017", "code"])
def test_spelling_keeps_the_codes_of_a_data_set_apart(vocabulary):
    labels = label_names(vocabulary)
    assert len({spelled(label) for label in labels}) == len(labels)

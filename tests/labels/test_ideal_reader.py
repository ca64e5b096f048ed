"""A network that reproduces the default labels perfectly scores so through every shipped map.

Each data set's statements are translated here into the 12SL codes that a cart writes for the same
finding; the default vocabulary makes labels of them, as in training. Where the map is right, these
labels separate its positives from its negatives.
"""

import ast
import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ecgfounder_train.labels import Vocabulary, unpack
from ecgfounder_train.labels.maps import LabelMap, map_names
from ecgfounder_train.metrics import auroc

VOCABULARY = Vocabulary.load("ecgfounder150")
PTBXL = {
    "NORM": "1684", "SR": "19", "SBRAD": "21", "STACH": "23", "AFIB": "161", "AFLT": "162",
    "SARRH": "251", "SVTAC": "271", "PSVT": "271", "BIGU": "234", "PAC": "222", "PVC": "231",
    "CRBBB": "440", "IRBBB": "445", "CLBBB": "460", "ILBBB": "465", "LAFB": "470", "LPFB": "471",
    "IVCD": "487", "1AVB": "101", "3AVB": "106", "LAO/LAE": "360", "RAO/RAE": "350", "LVH": "541",
    "VCLVH": "540", "RVH": "520", "LVOLT": "410", "NDT": "1140", "NST_": "900", "LNGQT": "1143",
    "AMI": "740", "ASMI": "810", "ALMI": "820", "LMI": "760", "IMI": "780", "ILMI": "780 760",
    "IPMI": "801", "IPLMI": "801 760", "PMI": "802", "WPW": "304", "PACE": "296",
    "heart_axis=ALAD": "371", "heart_axis=RAD": "383", "INVT": "1140", "ISC_": "", "STD_": "",
}  # fmt: skip
CINC2021 = {
    "426783006": "19", "426177001": "21", "427084000": "23", "427393009": "251",
    "164889003": "161", "164890007": "162", "426761007": "271", "164895002": "248",
    "427172004": "231", "164884008": "231", "11157007": "231 234", "251182009": "231",
    "251180001": "231", "284470004": "222", "251170000": "222", "251173003": "222 234",
    "13640000": "244", "59118001": "440", "713427006": "440", "713426002": "445",
    "164909002": "460", "733534002": "460", "251120003": "465", "445118002": "470",
    "445211001": "471", "270492004": "101", "27885002": "106", "54016002": "103", "50799005": "108",
    "49578007": "102", "74390002": "304", "111975006": "1143", "67741000119109": "360",
    "446813000": "360", "446358003": "350", "253339007": "350", "164873001": "541",
    "55827005": "540", "89792004": "520", "251146004": "410", "39732003": "372", "47665007": "383",
    "54329005": "740", "57054005": "829", "428750005": "1141", "428417006": "1000",
    "251266004": "296", "251268003": "295", "75532003": "243", "29320008": "267",
    "164917005": "", "164931005": "",
}  # fmt: skip
LUDB = {
    "Sinus rhythm": "19", "Sinus bradycardia": "21", "Sinus tachycardia": "23",
    "Sinus arrhythmia": "251", "Irregular sinus rhythm": "251", "Atrial fibrillation": "161",
    "Atrial flutter, typical": "162", "Aberrant conduction": "246",
    "Electric axis of the heart: left axis deviation": "372",
    "Electric axis of the heart: right axis deviation": "383",
    "Electric axis of the heart: normal": "", "Electric axis of the heart: vertical": "",
    "Left atrial hypertrophy": "360", "Right atrial overload": "350",
    "Left ventricular hypertrophy": "541", "Right ventricular hypertrophy": "520",
    "Complete right bundle branch block": "440", "Incomplete right bundle branch block": "445",
    "Complete left bundle branch block": "460", "Incomplete left bundle branch block": "465",
    "Left anterior hemiblock": "470", "I degree av block": "101", "Iii degree av-block": "106",
    "Ventricular extrasystole, type: single pvc": "231",
    "Ventricular extrasystole, type: couplet": "231",
    "Atrial extrasystole, type: single pac": "222",
    "Atrial extrasystole, type: bigemini": "222 234",
    "Unipolar ventricular pacing": "296", "Unipolar atrial pacing": "295",
    "Biventricular pacing": "296 289", "P-synchrony": "297",
    "Early repolarization syndrome": "1000", "Stemi: anterior wall": "821",
    "Stemi: inferior wall": "821", "Scar formation: anterior wall": "740",
    "Scar formation: septal": "700", "Scar formation: lateral wall": "760",
    "Scar formation: inferior wall": "780", "Scar formation: posterior wall": "802",
    "Ischemia: anterior wall": "",
}  # fmt: skip
MIMIC = {
    "Ventricular paced rhythm": "296", "Inferior/lateral infarct - age undetermined": "780 760",
    "Anteroseptal infarct - age undetermined": "810", "Marked left axis deviation": "371",
    "Severe right axis deviation": "381", "Left ventricular hypertrophy by voltage only": "540",
    "RBBB with left anterior fascicular block": "478", "Biatrial enlargement": "369",
    "Sinus rhythm with PVC(s)": "19 231", "Sinus rhythm with ventricular bigeminy": "19 231 234",
    "Sinus bradycardia with 1st degree A-V block": "21 101", "Sinus rhythm with PAC(s)": "19 222",
    "Atrial fibrillation with rapid ventricular response": "161 171", "Incomplete RBBB": "445",
    "Lateral ST-T changes are nonspecific": "1141", "Supraventricular tachycardia": "271",
}  # fmt: skip
TOGETHER = {("440", "470"): "478", ("440", "471"): "479", ("360", "350"): "369",
            ("541", "520"): "570"}  # fmt: skip


def own_texts() -> dict[str, str]:
    """Return the labels' own texts: what carts of the training archive write, and its code."""
    return {
        entry.name: entry.codes[0]
        for entry in VOCABULARY.entries
        if entry.notes["needs_previous_ecg"] == "no"
    }


READERS = {
    "ptbxl": PTBXL,
    "cinc2021": CINC2021,
    "ludb": LUDB,
    "mimic": MIMIC | own_texts(),
    "code_test": {
        "1dAVb": "101", "RBBB": "440", "LBBB": "460", "SB": "21", "AF": "161", "ST": "23",
    },
    "cinc2017": {"N": "22", "A": "161", "O": "231", "~": ""},
}  # fmt: skip


def codes_of(statements: tuple[str, ...], reader: dict[str, str]) -> list[str]:
    stated = {code for statement in statements for code in reader.get(statement, "").split()}
    whole = {code for parts, code in TOGETHER.items() if stated >= set(parts)}
    parts = {part for parts, _ in TOGETHER.items() if stated >= set(parts) for part in parts}
    codes = stated - parts | whole
    if codes >= {"19", "1684"}:
        codes = codes - {"19"} | {"22"}
    return sorted(codes) or ["1699"]


def scores(
    data_set: str, cells: list[tuple[str, ...]], sites: list[str], closure: str = "parents"
) -> dict[str, float]:
    """Return the AUROC of the perfect reader for each exact label of a map."""
    mapped = LabelMap.load(data_set, "ecgfounder150", VOCABULARY.labels)
    read = [codes_of(cell, READERS[data_set]) for cell in cells]
    vocabulary = Vocabulary.load("ecgfounder150", closure=closure)
    encoded = vocabulary.encode_many(pl.Series(read, dtype=pl.List(pl.String)))
    labels = unpack(encoded.values, vocabulary.num_labels).astype(np.float32)
    targets, observed = mapped.targets(cells, sites)
    exact = [i for i, entry in enumerate(mapped.entries) if entry.agreement == "exact"]
    columns = [VOCABULARY.labels.index(mapped.entries[i].label) for i in exact]
    found = auroc(labels[:, columns], targets[:, exact], observed[:, exact])
    return dict(zip([mapped.entries[i].label for i in exact], found, strict=True))


def one_and_two(statements: list[str]) -> list[tuple[str, ...]]:
    return [*((one,) for one in statements), *combinations(statements, 2)]


MAPS = [name.split(".")[1] for name in map_names() if name.startswith("ecgfounder150.")]


@pytest.mark.parametrize("data_set", MAPS)
def test_a_perfect_reader_of_the_default_labels_scores_so_through_every_map(data_set: str) -> None:
    cells = one_and_two(list(READERS[data_set]))
    places = ["georgia", "ningbo"] if data_set == "cinc2021" else [""]
    sites = [place for place in places for _ in cells]
    found = scores(data_set, cells * len(places), sites)
    assert {label: round(float(area), 3) for label, area in found.items() if not area >= 0.99} == {}


def test_without_closure_the_reader_would_fail_where_a_statement_names_the_part() -> None:
    cells = one_and_two(list(PTBXL))
    found = scores("ptbxl", cells, [""] * len(cells), closure="none")
    assert found["RIGHT BUNDLE BRANCH BLOCK"] < 0.99
    assert found["INFERIOR INFARCT"] < 0.99


@pytest.mark.real_data
def test_a_perfect_reader_of_ptbxl_scores_so_on_its_records(real_data: Path) -> None:
    with open(real_data / "ptbxl100" / "ptbxl_database.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    cells = [tuple(ast.literal_eval(row["scp_codes"])) for row in rows]
    found = scores("ptbxl", cells, [""] * len(cells))
    areas = {label: float(area) for label, area in found.items() if not np.isnan(area)}
    assert len(areas) >= 38
    assert {label: round(area, 3) for label, area in areas.items() if area < 0.99} == {}

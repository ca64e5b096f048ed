"""The split: pure, stable, by patient."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ecgfounder_train.catalog import canonical_patients, patient_hashes
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.splits import PatientSplit

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "split"
IDS = st.integers(1, 60).map(str)
MERGES = st.lists(st.tuples(IDS, IDS), max_size=15)


def table(patients: list[str], merges: list[tuple[str, str]], folds: list[str] | None = None):
    canonical = canonical_patients(
        pl.DataFrame(merges, schema={"from": pl.String, "to": pl.String}, orient="row")
    )
    records = pl.DataFrame(
        {
            "patient_hash": patient_hashes(patients),
            "canonical_hash": patient_hashes(canonical.get(name, name) for name in patients),
            "split": pl.Series(folds or [None] * len(patients), dtype=pl.String),
        }
    )
    others = pl.DataFrame(
        {
            "patient_hash": patient_hashes(canonical),
            "canonical_hash": patient_hashes(canonical.values()),
        }
    )
    return records, others


SPLIT = PatientSplit(test_fraction=0.3, val_fraction=0.2)


@given(st.lists(IDS, min_size=1, max_size=80), MERGES)
@settings(deadline=None)
def test_no_patient_in_two_splits(patients: list[str], merges: list[tuple[str, str]]) -> None:
    records, others = table(patients, merges)
    parts = records.with_columns(SPLIT.assign(records, others).parts.alias("part"))
    assert parts["part"].null_count() == 0
    assert parts.group_by("canonical_hash").agg(pl.col("part").n_unique())["part"].max() == 1


@given(st.lists(IDS, min_size=1, max_size=60), st.lists(IDS, max_size=60), MERGES)
@settings(deadline=None)
def test_adding_records_moves_nobody(
    patients: list[str], added: list[str], merges: list[tuple[str, str]]
) -> None:
    before = SPLIT.assign(*table(patients, merges)).parts.to_list()
    after = SPLIT.assign(*table(patients + added, merges)).parts.to_list()
    assert after[: len(patients)] == before


@given(st.lists(IDS, min_size=1, max_size=60), MERGES)
@settings(deadline=None)
def test_a_later_merge_never_moves_anyone_towards_train(
    patients: list[str], merges: list[tuple[str, str]]
) -> None:
    apart = SPLIT.assign(*table(patients, [])).parts
    merged = SPLIT.assign(*table(patients, merges))
    rank = {part: number for number, part in enumerate(SPLITS)}
    for before, after in zip(apart, merged.parts, strict=True):
        assert rank[after] >= rank[before]


def test_joined_patients_are_listed_with_the_part_that_won() -> None:
    by_part: dict[str, str] = {}
    for number in range(1000):
        drawn = SPLITS[SPLIT.draw(patient_hashes([str(number)]).to_numpy())[0]]
        by_part.setdefault(drawn, str(number))
    train, test = by_part["train"], by_part["test"]
    assignment = SPLIT.assign(*table([train, "123456"], [(train, test)]))
    assert assignment.parts[0] == "test"
    assert assignment.joined.select("parts", "part").rows() == [("train+test", "test")]


def test_fractions_hold_and_seeds_are_independent() -> None:
    hashes = patient_hashes(str(number) for number in range(50_000)).to_numpy()
    split = PatientSplit(test_fraction=0.10, val_fraction=0.05)
    shares = np.bincount(split.draw(hashes)) / len(hashes)
    np.testing.assert_allclose(shares, [0.855, 0.045, 0.10], atol=0.005)
    other = PatientSplit(test_fraction=0.10, val_fraction=0.05, seed=1)
    both = np.mean((split.draw(hashes) == 2) & (other.draw(hashes) == 2))
    assert abs(both - 0.01) < 0.002


def test_another_validation_share_leaves_the_test_part_alone() -> None:
    hashes = patient_hashes(str(number) for number in range(5_000)).to_numpy()
    few = PatientSplit(val_fraction=0.01).draw(hashes)
    many = PatientSplit(val_fraction=0.3).draw(hashes)
    np.testing.assert_array_equal(few == 2, many == 2)
    assert set(np.flatnonzero(few == 1)) <= set(np.flatnonzero(many == 1))


def test_the_draw_is_frozen() -> None:
    # A change here would move patients of every data set that was ever prepared.
    hashes = patient_hashes(str(number) for number in range(100)).to_numpy()
    held_out = {p: np.flatnonzero(PatientSplit().draw(hashes) == i) for i, p in enumerate(SPLITS)}
    assert held_out["test"].tolist() == FROZEN_TEST
    assert held_out["val"].tolist() == FROZEN_VAL


FROZEN_TEST = [4, 8, 22, 37, 50, 88, 91, 99]
FROZEN_VAL = [36, 59, 95]


def test_official_folds_are_taken_and_the_strictest_wins_across_a_merge() -> None:
    split = PatientSplit(kind="official")
    patients, folds = ["1", "2", "3", "4"], ["train", "test", "val", None]
    assert split.assign(*table(patients, [], folds)).parts.to_list() == folds
    merged = split.assign(*table(patients, [("1", "3")], folds))
    assert merged.parts.to_list() == ["val", "test", "val", None]
    assert merged.joined["parts"].to_list() == ["train+val"]


def test_official_split_without_folds_says_what_to_do() -> None:
    with pytest.raises(UserError, match="split=patient_hash"):
        PatientSplit(kind="official").assign(*table(["1"], []))
    with pytest.raises(UserError, match="folds are named 7"):
        PatientSplit(kind="official").assign(*table(["1"], [], ["7"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "patient_hsh"}, "Did you mean 'patient_hash'"),
        ({"test_share": 0.1}, "test_share is not a setting"),
        ({"test_fraction": 10}, "below 1"),
        ({"test_fraction": "0.1"}, "below 1"),
        ({"val_fraction": -0.1}, "at least 0"),
        ({"test_fraction": 0.5, "val_fraction": 0.5}, "leave 25% of the patients"),
        ({"seed": "x"}, "whole number"),
        ({"seed": float("nan")}, "whole number"),
        ({"kind": "site", "test_sites": "I0006"}, r"a list of sites, such as \[I0006\]"),
        ({"kind": "site", "test_sites": 6}, "a list of sites"),
    ],
)
def test_wrong_split_settings_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PatientSplit.from_config(config)


def test_fingerprint_follows_the_rule_and_not_the_name() -> None:
    base = PatientSplit()
    assert PatientSplit(name="other").fingerprint == base.fingerprint
    changed = [PatientSplit(seed=1), PatientSplit(test_fraction=0.2), PatientSplit(kind="official")]
    assert base.fingerprint not in {split.fingerprint for split in changed}
    official = PatientSplit(kind="official", seed=4)  # a seed that draws nothing changes nothing
    assert official.fingerprint == changed[2].fingerprint


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_split_config_opens_with_its_own_name(path: Path, tmp_path: Path) -> None:
    config = OmegaConf.load(path)
    if OmegaConf.missing_keys(config):
        config["file"] = str(tmp_path / "patients.csv")
        (tmp_path / "patients.csv").write_text("patient,split\n1,test\n")
    assert PatientSplit.from_config(config).name == path.stem


def visits(rows: list[tuple[str, str | None, int | None]]) -> pl.DataFrame:
    """Return one row per record: patient, site, year."""
    hashes = patient_hashes([patient for patient, _, _ in rows])
    return pl.DataFrame(
        {
            "patient_hash": hashes,
            "canonical_hash": hashes,
            "split": pl.Series([None] * len(rows), dtype=pl.String),
            "site": pl.Series([site for _, site, _ in rows], dtype=pl.String),
            "year": pl.Series([year for _, _, year in rows], dtype=pl.Int32),
        }
    )


def test_by_site_a_patient_of_both_sites_is_wholly_held_out() -> None:
    records = visits(
        [("1", "A", 1), ("2", "B", 1), ("3", "A", 1), ("3", "B", 1), ("4", "C", 1), ("5", None, 1)]
    )
    rule = PatientSplit(kind="site", test_sites=["B"], train_sites=["A"], val_fraction=0.0)
    assigned = rule.assign(records)
    assert assigned.parts.to_list() == ["train", "test", "test", "test", None, None]
    assert assigned.joined.height == 1
    everything = PatientSplit(kind="site", test_sites=["B"], val_fraction=0.0)
    assert everything.assign(records).parts.to_list()[4] == "train"


def test_by_site_validation_is_drawn_from_the_training_sites_alone() -> None:
    records = visits([(str(i), "A" if i % 2 else "B", 1) for i in range(2000)])
    rule = PatientSplit(kind="site", test_sites=["B"], val_fraction=0.2)
    parts = records.with_columns(rule.assign(records).parts.alias("part"))
    counted = dict(
        parts.group_by("site", "part")
        .len()
        .select(pl.concat_str("site", "part"), "len")
        .iter_rows()
    )
    assert counted["Btest"] == 1000
    assert counted["Aval"] + counted["Atrain"] == 1000
    assert 150 < counted["Aval"] < 250


def test_by_year_a_patient_on_both_sides_is_wholly_held_out() -> None:
    records = visits(
        [("1", "A", 2010), ("1", "A", 2020), ("2", "A", 2017), ("3", "A", 2016), ("4", "A", None)]
    )
    rule = PatientSplit(kind="year", test_from_year=2018, val_from_year=2017)
    assert rule.assign(records).parts.to_list() == ["test", "test", "val", "train", None]
    drawn = PatientSplit(kind="year", test_from_year=2018, val_fraction=0.0)
    assert drawn.assign(records).parts.to_list() == ["test", "test", "train", "train", None]


def test_a_list_gives_parts_and_the_others_are_left_out_or_get_one(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("patient,split,note\n1, test,x\n2,val,\n99,train,\n")
    records = visits([("1", "A", 1), ("2", "A", 1), ("3", "A", 1)])
    rule = PatientSplit(kind="list", file=str(path))
    assert rule.assign(records).parts.to_list() == ["test", "val", None]
    trained = PatientSplit(kind="list", file=str(path), unlisted="train")
    assert trained.assign(records).parts.to_list() == ["test", "val", "train"]
    copy = tmp_path / "moved.csv"
    copy.write_text("split,patient\ntrain,99\nval,2\ntest,1\n")
    assert PatientSplit(kind="list", file=str(copy)).fingerprint == rule.fingerprint
    copy.write_text("split,patient\ntrain,99\nval,2\n")
    assert PatientSplit(kind="list", file=str(copy)).fingerprint != rule.fingerprint


def test_a_list_names_a_merged_patient_by_any_of_the_ids(tmp_path: Path) -> None:
    path = tmp_path / "patients.csv"
    path.write_text("patient,split\n7,test\n")
    merged = visits([("1", "A", 1)]).with_columns(patient_hashes(["2"]).alias("canonical_hash"))
    others = pl.DataFrame(
        {"patient_hash": patient_hashes(["7"]), "canonical_hash": patient_hashes(["2"])}
    )
    rule = PatientSplit(kind="list", file=str(path))
    assert rule.assign(merged, others).parts.to_list() == ["test"]


def test_wrong_rules_and_lists_are_refused(tmp_path: Path) -> None:
    records = visits([("1", "A", None)])
    with pytest.raises(UserError, match="no site Z"):
        PatientSplit(kind="site", test_sites=["Z"]).assign(records)
    with pytest.raises(UserError, match="test_sites is empty"):
        PatientSplit(kind="site")
    with pytest.raises(UserError, match="both name A"):
        PatientSplit(kind="site", test_sites=["A"], train_sites=["A"])
    with pytest.raises(UserError, match="test_from_year=None must be a year"):
        PatientSplit(kind="year")
    with pytest.raises(UserError, match="must be before"):
        PatientSplit(kind="year", test_from_year=2010, val_from_year=2010)
    with pytest.raises(UserError, match="knows no years"):
        PatientSplit(kind="year", test_from_year=2010).assign(records)
    path = tmp_path / "list.csv"
    for text, message in [
        ("a,b\n1,2\n", "no column 'patient'"),
        ("patient,split\n1,held\n", "names the part 'held'"),
        ("patient,split\n1,train\n1,test\n", "1 patients more than one part"),
        ("", "cannot be read"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            PatientSplit(kind="list", file=str(path))
    path.write_text("patient,split\n5,train\n")
    with pytest.raises(UserError, match="names none of the patients"):
        PatientSplit(kind="list", file=str(path)).assign(records)
    with pytest.raises(UserError, match=r"split\.seed is not a setting of split\.kind=list"):
        PatientSplit.from_config({"kind": "list", "seed": 3})

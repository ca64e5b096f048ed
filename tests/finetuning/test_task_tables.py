"""A table of answers is read whole or refused: no row is lost, no patient is in two parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from tuning_tools import Place, Rows, rows_of, write_table

from ecgfounder_train.app import CONFIGS, compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.finetuning.table import read_table
from ecgfounder_train.finetuning.task import Task
from ecgfounder_train.finetuning.task_shards import TaskShards, open_task
from ecgfounder_train.loader import SampleReader
from ecgfounder_train.loader.patients import patient_rows
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.weights.checkpoint import load_checkpoint


@pytest.fixture
def rows(tiny_set: Any) -> Rows:
    return rows_of(tiny_set.catalog)


@pytest.fixture
def task_of(place: Place, tmp_path: Path) -> Any:
    """Write rows and return the task on them."""

    def make(rows: Rows, **settings: Any) -> Task:
        table = write_table(tmp_path / "table.csv", rows)
        given = {"kind": "binary", "targets": ["fast"], "split_column": "part", **settings}
        return Task(name="test", table=str(table), records=str(place.records), **given)

    return make


@pytest.fixture(scope="module")
def profile(place: Place) -> SignalProfile:
    return SignalProfile.from_config(load_checkpoint(place.checkpoint)["spec"]["signal"])


def opened(task: Task, profile: SignalProfile, place: Place) -> TaskShards:
    return open_task(task, profile, None, place.cache)


def test_every_row_of_a_table_is_accounted_for(
    rows: Rows, task_of: Any, profile: SignalProfile, place: Place
) -> None:
    rows[3]["fast"] = ""
    rows.append(dict(rows[7]))  # the same row again
    rows.append({**rows[8], "record": ""})
    rows.append({**rows[8], "record": "S0/not_there"})
    shards = opened(task_of(rows), profile, place)
    counts = shards.counts
    assert counts["rows"] == 103
    assert counts["not used: without an answer"] == 1
    assert counts["not used: repeated"] == 1
    assert counts["not used: without a record"] == 1
    assert counts["not used: missing_header"] == 1
    lost = sum(number for key, number in counts.items() if key.startswith("not used: "))
    assert counts["used"] + lost == 103
    # Ten records have two windows each.
    assert sum(len(shards.rows(part)) for part in ("train", "val", "test")) == 99 + 10


def test_no_patient_is_in_two_parts_whether_drawn_or_given(
    rows: Rows, task_of: Any, profile: SignalProfile, place: Place
) -> None:
    for settings in ({}, {"split_column": None, "val_fraction": 0.2, "test_fraction": 0.3}):
        shards = opened(task_of(rows, **settings), profile, place)
        parts = [set(shards.patients[shards.rows(part)]) for part in ("train", "val", "test")]
        assert all(parts)
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_answers_stand_beside_the_signal_of_their_own_record(
    tiny_set: Any, rows: Rows, task_of: Any, profile: SignalProfile, place: Place
) -> None:
    shards = opened(task_of(rows, kind="multi_label", targets=["fast", "slow"]), profile, place)
    samples = map(tiny_set.shards.read_sample, range(len(tiny_set.shards)))
    known = {sample.ecg.tobytes(): sample.labels for sample in samples}
    signals = SampleReader(shards).read(np.arange(len(shards))).ecg
    assert {signal.tobytes() for signal in signals} == set(known)
    for signal, values in zip(signals, shards.values, strict=True):
        flags, observed = known[signal.tobytes()]
        if observed.all():
            assert values.tolist() == [flags[4], flags[0]]


def broken(rows: Rows, what: str) -> dict[str, Any]:
    """Damage the rows, or return settings that do not fit them."""
    if what == "two answers":
        rows.append({**rows[5], "fast": 1 - rows[5]["fast"]})
    if what == "torn patient":
        rows[0]["part"] = "test"
    if what == "text":
        rows[4]["fast"] = "perhaps"
    if what == "no positives":
        for row in rows:
            row["fast"] = 0
    if what == "no negatives":
        for row in rows:
            row["fast"] = 1
    if what == "part":
        rows[3]["part"] = "holdout"
    return {
        "column": {"targets": ["fasst"]},
        "patient": {"patient_column": "patiant"},
        "logarithm": {"kind": "regression", "targets": ["slow"], "transform": "log"},
        "fold": {"folds": {"test": [11]}},
        "quantity": {"kind": "regression", "targets": ["codes"]},
    }.get(what, {})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("column", "no column 'fasst'.*Did you mean 'fast'"),
        ("patient", "no column 'patiant'"),
        ("two answers", "Lines 7 and 102 of .* are of one record and differ"),
        ("torn patient", "puts 1 patients into two parts"),
        ("text", "1 values that are not yes or no.*first in line 6"),
        ("quantity", "100 values that are not a number.*first in line 2"),
        ("no positives", "No training patient is positive for fast|No label has 1 positive"),
        ("no negatives", "No training record is negative for fast"),
        ("part", "holds 'holdout'"),
        ("logarithm", "values are not above 0"),
        ("fold", "names '11', which column 'part'"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_by_name(
    rows: Rows, task_of: Any, profile: SignalProfile, place: Place, what: str, message: str
) -> None:
    settings = broken(rows, what)
    with pytest.raises(UserError, match=message) as caught:
        opened(task_of(rows, **settings), profile, place)
    assert "p2" not in str(caught.value).split()  # no patient's id


def test_empty_cells_are_missing_answers_not_negatives(rows: Rows, task_of: Any) -> None:
    rows[0]["fast"], rows[1]["fast"], rows[2]["fast"] = "", "NaN", "none"
    assert np.isnan(read_table(task_of(rows)).values[:3]).all()


def test_quantities_outside_their_range_are_missing_and_counted(rows: Rows, task_of: Any) -> None:
    table = read_table(task_of(rows, kind="regression", targets=["amount"], maximum=20.0))
    outside = sum(row["amount"] != "" and row["amount"] > 20 for row in rows)
    assert table.counts["answers_outside_the_range"] == outside > 0
    assert np.nanmax(table.values) <= 20


def test_yes_and_no_come_from_a_quantity_and_its_threshold(rows: Rows, task_of: Any) -> None:
    table = read_table(task_of(rows, targets=["amount"], positive_above=15.0))
    for row, value in zip(rows, table.values[:, 0], strict=True):
        assert np.isnan(value) if row["amount"] == "" else value == (row["amount"] > 15)


def test_profiles_gather_codes_by_prefix_whatever_case_and_dots(rows: Rows, task_of: Any) -> None:
    rows[0]["codes"] = ""
    profiles = {"af": ["I48"], "hf": ["I50", "I11.0"]}
    table = read_table(
        task_of(rows, kind="icd", targets=[], codes_column="codes", profiles=profiles)
    )
    assert table.labels == ("af", "hf")
    assert np.isnan(table.values[0]).all()
    for row, values in zip(rows[1:], table.values[1:], strict=True):
        assert values.tolist() == [row["fast"], row["slow"]]


@pytest.mark.parametrize(
    ("codes", "label"),
    [
        ("427.31", "atrial_fibrillation"),
        ("4273", "atrial_fibrillation"),
        ("428.0", "heart_failure"),
        ("402.91", "heart_failure"),
        ("404.13", "heart_failure"),
        ("250.00; 410.71", "acute_infarction"),
        ("412", "chronic_ischaemic"),
        ("414.01", "chronic_ischaemic"),
        ("424.1", "valve_disease"),
        ("425.4", "cardiomyopathy"),
        ("425.8", "cardiomyopathy"),
        ("585.6", "chronic_kidney_disease"),
        ("402.90", None),
        ("404.12", None),
        ("250.00", None),
    ],
)
def test_icd9_codes_count_for_the_shipped_cardiac_profiles(
    rows: Rows, task_of: Any, codes: str, label: str | None
) -> None:
    path = Path(__file__).parents[2] / "configs" / "task" / "icd_cardiac.yaml"
    profiles = OmegaConf.to_container(OmegaConf.load(path).profiles)
    rows[0]["codes"] = codes
    table = read_table(
        task_of(rows, kind="icd", targets=[], codes_column="codes", profiles=profiles)
    )
    wanted = [name == label for name in profiles]
    assert table.values[0].tolist() == wanted


def test_icd9_codes_are_refused_where_a_profile_has_no_translation(
    rows: Rows, task_of: Any
) -> None:
    rows[3]["codes"] = "250.00"
    settings = {"kind": "icd", "targets": [], "codes_column": "codes"}
    with pytest.raises(UserError, match=r"such as 25000.*E11 of task\.profiles\.diabetes"):
        read_table(task_of(rows, **settings, profiles={"diabetes": ["E11"], "hf": ["I50"]}))
    named = {"diabetes": ["E11", "250"], "hf": ["I50"]}
    table = read_table(task_of(rows, **settings, profiles=named))
    assert table.values[3].tolist() == [1, 0]


def test_rare_labels_are_left_out_by_count_and_named_in_the_totals(
    rows: Rows, task_of: Any, profile: SignalProfile, place: Place
) -> None:
    rows[0]["codes"] = "Q99"
    profiles = {"af": ["I48"], "rare": ["Q99"]}
    settings = {"kind": "icd", "targets": [], "codes_column": "codes", "profiles": profiles}
    shards = opened(task_of(rows, **settings, min_positives=3), profile, place)
    assert shards.manifest.labels == ("af",)
    assert "1 labels too rare" in shards.summary()


def test_smaller_shares_lie_in_the_larger_ones_and_leave_validation_and_test_whole(
    rows: Rows, task_of: Any, profile: SignalProfile, place: Place
) -> None:
    whole = opened(task_of(rows), profile, place)
    sets = []
    for fraction in (0.1, 0.3, 1.0):
        part = whole.with_fraction(fraction, seed=4)
        sets.append(set(part.patients[part.rows("train")]))
        for name in ("val", "test"):
            assert np.array_equal(part.rows(name), whole.rows(name))
    assert sets[0] < sets[1] < sets[2]
    by_pretraining = patient_rows(whole, 0.3, 4)
    assert np.array_equal(whole.with_fraction(0.3, 4).rows("train"), by_pretraining)
    other = whole.with_fraction(0.3, seed=5)
    assert set(other.patients[other.rows("train")]) != sets[1]
    prints = {whole.with_fraction(f, 4).manifest.fingerprint for f in (0.1, 0.3, 1.0)}
    assert len(prints) == 3
    for bad in (0.0, 1.5):
        with pytest.raises(UserError, match="label_fraction"):
            whole.with_fraction(bad, 0)


def test_tasks_on_the_same_records_share_their_signals(
    rows: Rows, task_of: Any, profile: SignalProfile, place: Place
) -> None:
    folders = {
        opened(task_of(rows, targets=[name]), profile, place).folder for name in ("fast", "slow")
    }
    assert len(folders) == 1


def test_prepared_shards_answer_by_label_by_group_and_by_fact(tiny_set: Any) -> None:
    shards = tiny_set.shards
    profile = SignalProfile.from_config(shards.manifest.signal)
    labels = list(shards.manifest.labels)

    def task(**settings: Any) -> TaskShards:
        return open_task(Task(name="t", **settings), profile, str(shards.folder), "unused")

    two = task(kind="multi_label", targets=[labels[3], labels[1]])
    assert two.manifest.labels == (labels[3], labels[1])
    packed = np.unpackbits(np.asarray(shards.index["labels"]), axis=1)[:, :5]
    seen = np.unpackbits(np.asarray(shards.index["observed"]), axis=1)[:, :5] == 1
    assert np.array_equal(
        two.values, np.where(seen, packed, np.nan)[:, [3, 1]].astype(np.float32), equal_nan=True
    )
    assert np.array_equal(two.rows("val"), shards.rows("val"))
    sex = task(kind="binary", targets=["sex_female"])
    assert set(np.unique(sex.values[~np.isnan(sex.values)])) == {0.0, 1.0}
    with pytest.raises(UserError, match="is not a label, group or metadata field"):
        task(kind="binary", targets=["NOORM"])
    with pytest.raises(UserError, match="Of prepared shards only age_years"):
        task(kind="regression", targets=[labels[0]])


def test_shards_of_another_signal_are_refused_with_both_named(tiny_set: Any) -> None:
    import tiny_set as tiny

    wanted = tiny.profile("zscore", leads=["I"])
    with pytest.raises(UserError, match=r"1 leads\), the shards .* hold others .*12 leads"):
        open_task(
            Task(name="t", kind="binary", targets=["sex_female"]),
            wanted,
            str(tiny_set.shards.folder),
            "unused",
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "binry"}, "task.kind='binry' is unknown. Did you mean 'binary'"),
        ({"kind": "binary", "targets": ["a", "b"]}, "has one target"),
        ({"kind": "icd", "targets": ["a"]}, "needs task.codes_column"),
        ({"kind": "multi_label", "codes_column": "c"}, "either task.profiles"),
        ({"kind": "binary", "targets": ["a"], "transform": "log"}, "belong to task.kind=regress"),
        ({"kind": "regression", "targets": []}, "task.targets is empty"),
        ({"kind": "binary", "targets": ["a"], "folds": {"test": [1]}}, "give task.split_column"),
    ],
)
def test_a_task_that_contradicts_itself_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Task(name="t", **settings)


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONFIGS / "task").glob("*.yaml")))
def test_every_task_composes_and_is_valid(name: str) -> None:
    config = compose_config("finetune", [f"task={name}", "checkpoint=x.ckpt", "run=r"])
    settings = dict(config["task"])
    if name in ("table", "ptbxl"):
        settings["targets"] = ["answer"]  # what a user fills in
    assert Task.from_config(settings).name == name


def test_no_task_is_said_so() -> None:
    with pytest.raises(UserError, match="Name a task with task=NAME"):
        Task.from_config(None)


@pytest.mark.parametrize("name", ["benchmark_linear", "benchmark_attention", "benchmark_finetuned"])
def test_protocols_of_the_benchmarks_cut_four_pieces(name: str) -> None:
    words = [f"experiment={name}", "task=ptbxl_superclasses", "checkpoint=x.ckpt", "run=r"]
    config = compose_config("finetune", words)
    assert config["crops"] == 4
    assert (
        config["mode"]
        == {
            "benchmark_linear": "linear_probe",
            "benchmark_attention": "attention_probe",
            "benchmark_finetuned": "preview",
        }[name]
    )

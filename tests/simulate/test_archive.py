"""The archive: same bytes by seed, every quirk counted, readable by wfdb and by this project."""

import hashlib
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import wfdb
import yaml

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.simulate import ArchiveSummary, simulate_ecg, write_archive
from ecgfounder_train.simulate.archive import LEADS, METADATA_COLUMNS
from ecgfounder_train.simulate.dictionary import ALTERNATIVES, STATEMENTS
from ecgfounder_train.simulate.prevalence import PREVALENCES
from ecgfounder_train.simulate.settings import DEFAULTS, SITES
from ecgfounder_train.simulate.wfdb_write import quantise, write_record

BAD_KINDS = tuple(DEFAULTS["bad_records"])
QUIRKY = {
    "num_patients": 60,
    "seed": 3,
    "bad_records": dict.fromkeys(BAD_KINDS, 0.04),
    "few_missing_samples": 0.05,
    "exact_duplicates": 0.05,
    "missing_files": 0.03,
    "missing_metadata": 0.03,
    "merged_patients": 0.2,
    "missing_age": 0.05,
    "nonpositive_age": 0.05,
    "nonzero_baseline_share": 0.1,
    "sites": {"I0001": {"missing_v24": 0.1}, "I0006": {"empty_codes": 0.1}},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> ArchiveSummary:
    return write_archive({"out": tmp_path_factory.mktemp("heedb") / "a", **QUIRKY})


def table(archive: ArchiveSummary, site: str, name: str) -> pl.DataFrame:
    return pl.read_csv(archive.root / "ECG" / site / name, infer_schema=False)


def truth(archive: ArchiveSummary) -> pl.DataFrame:
    return pl.read_csv(archive.root / "simulation" / "truth.csv", infer_schema=False)


def header_of(archive: ArchiveSummary) -> dict[str, Path]:
    return {path.stem: path for path in archive.root.rglob("*.hea")}


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.mark.multiprocess
def test_same_seed_gives_identical_bytes_at_any_number_of_workers(tmp_path: Path) -> None:
    small = {"num_patients": 20, "duration_s": 5.0}
    write_archive({"out": tmp_path / "a", **small})
    write_archive({"out": tmp_path / "b", **small, "num_workers": 2})
    write_archive({"out": tmp_path / "c", **small, "seed": 1})
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert not set(tree(tmp_path / "a").values()) & {
        digest for name, digest in tree(tmp_path / "c").items() if name.endswith((".mat", ".dat"))
    }


def test_tables_do_not_depend_on_whether_signals_are_written(tmp_path: Path) -> None:
    small = {"num_patients": 12, "duration_s": 5.0}
    write_archive({"out": tmp_path / "a", **small})
    summary = write_archive({"out": tmp_path / "b", **small, "write_signals": False})
    with_signals, without = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert {name: without[name] for name in without if name.endswith(".csv")} == {
        name: with_signals[name] for name in with_signals if name.endswith(".csv")
    }
    assert summary.num_headers == 0
    assert not list((tmp_path / "b").rglob("*.hea"))


def test_wfdb_reads_what_was_simulated(tmp_path: Path) -> None:
    signal = simulate_ecg(0, ["lbbb"])
    for suffix, gain, baseline in ((".mat", 1000.0, 0), (".dat", 204.8, -37)):
        digital = quantise(signal, gain, baseline)
        write_record(tmp_path, f"r{suffix[1:]}", digital, LEADS, 500.0, gain, baseline, suffix)
        record = wfdb.rdrecord(str(tmp_path / f"r{suffix[1:]}"), physical=False)
        assert record.sig_name == list(LEADS)
        assert record.fs == 500
        assert np.array_equal(record.d_signal, digital)
        assert record.checksum == digital.sum(axis=0, dtype=np.int64).astype(np.int16).tolist()
        assert np.abs(record.dac() - signal.T).max() <= 0.5 / gain + 1e-5


def test_matlab_reads_the_mat_files(archive: ArchiveSummary) -> None:
    from scipy.io import loadmat

    good = truth(archive).filter(pl.col("quirk").is_null(), pl.col("site") == "I0001")["stem"][0]
    path = header_of(archive)[good].with_suffix(".mat")
    value = loadmat(path)["val"]
    assert value.dtype == np.int16
    assert value.shape in ((12, 5000), (12, 2500))
    assert np.array_equal(
        value.T, wfdb.rdrecord(str(path.with_suffix("")), physical=False).d_signal
    )


def test_quirks_on_disk_add_up_with_the_summary(archive: ArchiveSummary) -> None:
    quirks = Counter(truth(archive)["quirk"].fill_null("").to_list())
    for kind in BAD_KINDS:
        counted = sum(site[f"bad_{kind}"] for site in archive.counts.values())
        assert counted == quirks[f"bad_{kind}"] > 0, kind
    assert archive.num_bad == sum(quirks[f"bad_{kind}"] for kind in BAD_KINDS)
    headers = list(archive.root.rglob("*.hea"))
    signals = [*archive.root.rglob("*.mat"), *archive.root.rglob("*.dat")]
    total = Counter[str]()
    for site in archive.counts.values():
        total.update(site)
    assert len(headers) == archive.num_headers == total["header_files"]
    assert len(signals) == total["signal_files"]
    assert total["header_files"] - total["signal_files"] == total["bad_missing_signal_file"]
    assert archive.num_records == len(truth(archive)) == total["records"]
    assert total["records"] - total["missing_metadata"] == total["metadata_rows"]
    assert quirks["duplicate"] == total["exact_duplicates"] > 0
    for site in SITES:
        counts = archive.counts[site]
        metadata = table(archive, site, "metadata/metadata.csv")
        assert metadata.height == counts["metadata_rows"]
        on_disk = set(header_of(archive))
        stems = {name.rsplit("/", 1)[-1] for name in metadata["FileName"]}
        assert len(stems - on_disk) == counts["missing_files"]
        of_site = {path.stem for path in (archive.root / "ECG" / site).rglob("*.hea")}
        assert len(of_site - stems) == counts["missing_metadata"]
        ages = metadata["AgeAtAcquisition"]
        assert ages.null_count() == counts["missing_age"]
        assert (ages.drop_nulls().cast(pl.Int64) <= 0).sum() == counts["nonpositive_age"]
        assert (ages.drop_nulls().cast(pl.Int64) == 90 * 365).sum() == counts["censored_age"]


def test_duplicates_hold_the_same_samples(archive: ArchiveSummary) -> None:
    digests = Counter(
        hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in ("*.mat", "*.dat")
        for path in archive.root.rglob(pattern)
    )
    zeros = sum(site["bad_all_zero"] for site in archive.counts.values())
    doubled = sum(number - 1 for number in digests.values())
    copies = sum(site["exact_duplicates"] for site in archive.counts.values())
    assert copies <= doubled <= copies + zeros


def test_tables_have_all_columns_and_hold_the_habits_of_heedb(archive: ArchiveSummary) -> None:
    for site in SITES:
        metadata = table(archive, site, "metadata/metadata.csv")
        acquisition = table(archive, site, "12SL_diagnoses/diagnoses_acquisition.csv")
        v24 = table(archive, site, "12SL_diagnoses/diagnoses_v24.csv")
        dictionary = table(archive, site, "12SL_diagnoses/diagnoses_dictionary.csv")
        assert tuple(metadata.columns) == METADATA_COLUMNS[site]
        assert acquisition.columns == [
            *("FileName", "codes_software", "codes_physician", "jaccard_index"),
        ]
        assert v24.columns == ["FileName", "codes"]
        assert metadata.height - acquisition.height == archive.counts[site]["missing_acquisition"]
        assert metadata.height - v24.height == archive.counts[site]["missing_v24"]
        missing = acquisition["codes_physician"].null_count()
        assert missing == archive.counts[site]["missing_over_read"]
        assert v24["codes"].null_count() == archive.counts[site]["empty_codes"]
        texts = Counter(dictionary["diagnoses"])
        assert texts["ATRIAL FLUTTER"] > 1
        assert dictionary["acronym"].null_count() > 0
        assert dictionary["codes"].cast(pl.Int64).to_list() == sorted(STATEMENTS)
        for version in ("9", "10"):
            assert table(archive, site, f"ICD_codes/icd{version}_codes.csv").height >= 0
    assert len(METADATA_COLUMNS["I0001"]) == 28
    assert len(METADATA_COLUMNS["I0006"]) == 12
    first = table(archive, "I0001", "12SL_diagnoses/diagnoses_v24.csv")["FileName"]
    assert first.str.contains(r"^\./S000[1-4]/\d{4}/\d{2}/de_\d+_\d{14}_\d{14}\.hea\n$").all()
    cells = table(archive, "I0006", "12SL_diagnoses/diagnoses_acquisition.csv")["codes_software"]
    assert cells.str.contains(r",\d").any()
    assert cells.str.contains(", ").any()


def test_one_blank_makes_the_ids_of_the_second_site_floats(archive: ArchiveSummary) -> None:
    ids = table(archive, "I0006", "metadata/metadata.csv")["BDSPPatientID"]
    assert ids.null_count() == 1
    assert ids.drop_nulls().str.ends_with(".0").all()
    whole = table(archive, "I0001", "metadata/metadata.csv")["BDSPPatientID"]
    assert whole.str.contains(r"^\d{9}$").all()


def test_no_patient_is_at_both_sites(archive: ArchiveSummary) -> None:
    people = truth(archive).group_by("patient").agg(pl.col("site").n_unique())
    assert people["site"].max() == 1


def test_merged_patients_are_in_the_merge_table(archive: ArchiveSummary) -> None:
    merges = pl.read_csv(archive.root / "PatientMergeHistory" / "PatientMergeHistory.csv")
    ids = set(truth(archive)["patient"].cast(pl.Int64))
    assert merges.height == sum(site["merged_patients"] for site in archive.counts.values()) > 0
    assert set(merges["OldBDSPPatientID"]) | set(merges["NewBDSPPatientID"]) <= ids


def test_dates_of_names_are_shifted_against_the_folders(archive: ArchiveSummary) -> None:
    for path in (archive.root / "ECG" / "I0006" / "WFDB").rglob("MUSE_*.hea"):
        assert path.stem.split("_")[1][:4] != path.parent.name


def test_rates_are_met_in_a_large_table(tmp_path: Path) -> None:
    summary = write_archive({"out": tmp_path / "a", "num_patients": 1200, "write_signals": False})
    first, second = (summary.counts[site] for site in SITES)
    assert first["records"] / first["patients"] == pytest.approx(5.8, rel=0.12)
    assert second["records"] / second["patients"] == pytest.approx(2.9, rel=0.15)
    assert first["missing_over_read"] / first["metadata_rows"] == pytest.approx(0.189, abs=0.02)
    codes = truth(summary)["codes"].str.split(" ")
    for code, share in (("161", 0.09), ("460", 0.038), ("21", 0.12), ("23", 0.11), ("440", 0.055)):
        assert codes.list.contains(code).mean() == pytest.approx(share, rel=0.4), code
    sinus = codes.list.contains("22") | codes.list.contains("19")
    assert sinus.mean() == pytest.approx(0.63, abs=0.06)


def test_yaml_holds_the_defaults_of_the_code() -> None:
    path = Path(__file__).parents[2] / "configs" / "simulate.yaml"
    config = yaml.safe_load(path.read_text())
    assert {key: config[key] for key in DEFAULTS} == {
        **DEFAULTS,
        "layout": 5.0,  # A number in YAML.
        "prevalences": PREVALENCES,  # All of them, so that a command line can change each.
    }
    assert config["out"] is None


LAYOUTS = {
    "5.0": {
        "ECG/I0001/12SL_diagnoses/diagnoses_acquisition.csv",
        "ECG/I0006/metadata/metadata.csv",
    },
    "4.0": {"ECG/I0001/12SL_diagnoses/diagnoses.csv", "ECG/I0006/12SL_diagnoses/diagnoses.csv"},
    "2.0": {"Metadata/demographics_ECG.csv", "Metadata/duplicated.csv"},
}


@pytest.mark.parametrize("layout", [5.0, "4.0", 2])
def test_each_release_has_its_own_folders_and_tables(tmp_path: Path, layout: object) -> None:
    out = tmp_path / "a"
    write_archive({"out": out, "num_patients": 10, "duration_s": 5.0, "layout": layout})
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    for release, own in LAYOUTS.items():
        assert (own <= files) == (float(layout) == float(release)), release
    records = next(path for path in sorted(files) if path.endswith(".hea"))
    assert records.startswith("ECG/WFDB/S000" if float(layout) == 2 else "ECG/I0001/WFDB/S000")


def test_release_2_has_the_files_and_columns_that_its_readers_expect(tmp_path: Path) -> None:
    root = tmp_path / "a"
    summary = write_archive(
        {"out": root, "num_patients": 40, "layout": "2.0", "exact_duplicates": 0.1}
        | {"write_signals": False}
    )
    people = pl.read_csv(root / "Metadata" / "demographics_ECG.csv", infer_schema=False)
    assert people.columns == ["BDSPPatientID", "FileName", "SexDSC", "Age"]
    assert people["FileName"].str.contains(r"^\./S000[1-4]/\d{4}/\d{2}/de_.*\.hea$").all()
    said = pl.read_csv(
        root / "Metadata" / "ECG_Interpretations.psv", separator="|", infer_schema=False
    )
    assert (said.columns[0], said.columns[-1]) == ("file_source", "diagnostic_codes")
    assert set(said["file_source"]) <= set(people["FileName"])
    doubled = pl.read_csv(root / "Metadata" / "duplicated.csv")
    assert doubled.columns == ["file_name"]
    assert doubled.height == summary.counts["I0001"]["exact_duplicates"] > 0


def test_what_the_physician_missed_is_known_in_the_truth(tmp_path: Path) -> None:
    rates = {"missed_positives": 0.3, "exact_duplicates": 0.0, "missing_metadata": 0.0}
    summary = write_archive(
        {"out": tmp_path / "a", "num_patients": 150, "write_signals": False, **rates}
    )
    rows = truth(summary)
    read = rows.filter(pl.col("codes_physician").is_not_null())
    said = sum(len(cell.split()) for cell in read["codes_physician"])
    missed = sum(len((cell or "").split()) for cell in read["missed"])
    classes = read.height  # Never missed.
    assert missed / (said + missed - classes) == pytest.approx(0.3, abs=0.03)
    for codes, physician, left_out in read.select("codes", "codes_physician", "missed").iter_rows():
        assert set(codes.split()) == set(physician.split()) | set((left_out or "").split())
    assert rows["codes_physician"].null_count() == sum(
        site["missing_over_read"] for site in summary.counts.values()
    )
    assert rows.filter(pl.col("codes_physician").is_null())["missed"].null_count() > 0


def test_software_and_physician_disagree_at_the_rates_set(tmp_path: Path) -> None:
    def disagreement(**rates: float) -> pl.Series:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        summary = write_archive(
            {"out": out, "num_patients": 80, "write_signals": False, "missed_positives": 0.0}
            | rates
        )
        return table(summary, "I0001", "12SL_diagnoses/diagnoses_acquisition.csv")[
            "jaccard_index"
        ].cast(pl.Float64)

    none = disagreement(software_disagreement=0.0, software_additions=0.0)
    assert none.drop_nulls().min() == 1.0
    some = disagreement(software_disagreement=0.3, software_additions=0.2)
    assert 0.5 < some.mean() < 0.85


def test_recording_faults_come_at_their_rates_with_their_statements(tmp_path: Path) -> None:
    rates = {"arm_leads_reversed": 0.1, "leg_lead_reversed": 0.1, "chest_leads_reversed": 0.1}
    summary = write_archive(
        {"out": tmp_path / "a", "num_patients": 300, "write_signals": False}
        | {"recording": {**dict.fromkeys(DEFAULTS["recording"], 0.0), **rates, "lead_off": 0.1}}
    )
    rows = truth(summary).with_columns(
        pl.col("codes").str.split(" "), pl.col("findings").fill_null("").str.split(" ")
    )
    codes = {
        **{"arm_leads_reversed": "1672", "leg_lead_reversed": "1679"},
        **{"chest_leads_reversed": "1595", "lead_off": "1673"},
    }
    for flag, code in codes.items():
        is_so = rows["findings"].list.contains(flag)
        assert is_so.mean() == pytest.approx(0.1, abs=0.03), flag
        assert (rows["codes"].list.contains(code) == is_so).all(), flag


def test_texts_that_stand_under_two_codes_are_said_with_either(tmp_path: Path) -> None:
    cells = []
    for rate in (0.0, 0.5):
        summary = write_archive(
            {"out": tmp_path / str(rate), "num_patients": 120, "write_signals": False}
            | {"alternative_codes": rate}
        )
        cells.append({code for cell in truth(summary)["codes"] for code in cell.split()})
    rarer = {str(code) for others in ALTERNATIVES.values() for code in others}
    assert not cells[0] & rarer
    assert len(cells[1] & rarer) > 3
    assert ALTERNATIVES[162] == (273, 288)


def test_metadata_rows_without_an_acquisition_row_have_no_over_read(tmp_path: Path) -> None:
    summary = write_archive(
        {"out": tmp_path / "a", "num_patients": 40, "write_signals": False}
        | {"sites": {"I0001": {"missing_acquisition": 0.2, "missing_over_read": 0.0}}}
    )
    missing = summary.counts["I0001"]["missing_acquisition"]
    rows = table(summary, "I0001", "12SL_diagnoses/diagnoses_acquisition.csv").height
    assert rows + missing == summary.counts["I0001"]["metadata_rows"]
    assert missing > 10


def test_prevalences_have_a_long_tail(tmp_path: Path) -> None:
    from ecgfounder_train.labels import Vocabulary

    summary = write_archive({"out": tmp_path / "a", "num_patients": 1200, "write_signals": False})
    vocabulary = Vocabulary.load("ecgfounder150")
    cells = truth(summary)["codes"].str.split(" ")
    counts = np.sum([vocabulary.encode(cell)[0] for cell in cells], axis=0)
    shares = np.sort(counts / len(cells))[::-1]
    assert (counts > 0).sum() > 135
    assert shares[0] > 0.4
    assert 0.002 < np.median(shares) < 0.01
    assert shares[120] < 0.002


def test_tables_alone_are_written_at_a_thousand_rows_a_second(tmp_path: Path) -> None:
    """A million rows in minutes; half of what a quiet core does, for busy machines."""
    begin = time.process_time()
    summary = write_archive({"out": tmp_path / "a", "num_patients": 400, "write_signals": False})
    assert summary.num_records / (time.process_time() - begin) > 1000


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("ECG_TEST_TIER") != "all", reason="ECG_TEST_TIER=all only")
def test_three_hundred_ecgs_a_second_are_simulated(tmp_path: Path) -> None:
    write_archive({"out": tmp_path / "warm", "num_patients": 3})
    begin = time.process_time()
    summary = write_archive({"out": tmp_path / "a", "num_patients": 300})
    assert summary.num_records / (time.process_time() - begin) > 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "6.0"}, "5.0, 4.0, 2.0"),
        ({"mains_hz": 55}, "50 or at 60"),
        ({"recording": {"motion": 1.5}}, "between 0 and 1"),
        ({"recording": {"motions": 0.5}}, "motion"),
        ({"missed_positives": -0.1}, "between 0 and 1"),
        ({"num_patient": 3}, "num_patients"),
        ({"num_patients": 0}, "at least 1"),
        ({"num_patients": "many"}, "number"),
        ({"fs_500_share": 1.5}, "between 0 and 1"),
        ({"bad_records": {"all_zero": -0.1}}, "between 0 and 1"),
        ({"bad_records": {"all_zero": 0.6, "too_short": 0.6}}, "add up"),
        ({"bad_records": {"all_zeros": 0.1}}, "all_zero"),
        ({"bad_records": 0.1}, "settings of its own"),
        ({"sites": {"I0001": {"share": 0.9}}}, "add up"),
        ({"sites": {"I0002": {}}}, "I0001"),
        ({"sites": {"I0006": {"ecgs_per_patient": 0.5}}}, "at least 1"),
        ({"prevalences": {"lbbb": 2}}, "between 0 and 1"),
        ({"write_signals": 1}, "true or false"),
    ],
)
def test_impossible_settings_are_refused_and_nothing_is_written(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_archive({"out": tmp_path / "a", **changes})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_archive({"out": tmp_path})
    with pytest.raises(UserError, match="out is missing"):
        write_archive({})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_archive({"out": tmp_path / "a", "num_patients": 3}, on_progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_heedb_source_reads_the_tables(archive: ArchiveSummary) -> None:
    from ecgfounder_train.records.sources import open_source

    read = open_source({"name": "heedb", "root": str(archive.root)}).read()
    records = read.records.collect()
    sites = archive.counts.values()
    assert records.height == sum(site["metadata_rows"] for site in sites)
    assert records["patient_id"].null_count() == 1
    assert read.merges is not None
    assert read.merges.height == sum(site["merged_patients"] for site in sites)
    unread = sum(site["missing_over_read"] for site in sites)
    assert records["statements"].null_count() == unread
    said = dict(records.drop_nulls("statements").select("record_path", "statements").iter_rows())
    codes = dict(truth(archive).select("stem", "codes_physician").iter_rows())
    for path, statements in said.items():
        assert statements == codes[path.rsplit("/", 1)[-1]].split(" ")


def test_reader_reads_every_good_record_and_names_what_is_wrong_with_the_others(
    archive: ArchiveSummary,
) -> None:
    from ecgfounder_train.records import SignalProfile, read_record

    config = Path(__file__).parents[2] / "configs" / "signal" / "paper.yaml"
    profile = SignalProfile.from_config(yaml.safe_load(config.read_text()))
    reasons = {
        "bad_unreadable_header": "unreadable_header",
        "bad_missing_signal_file": "missing_signal_file",
        "bad_truncated_signal": "truncated_signal",
        "bad_not_12_leads": "missing_leads",
        "bad_all_zero": "all_zero",
        "bad_constant_lead": "constant_lead",
        "bad_too_short": "too_short",
        "bad_missing_samples": "missing_samples",
        "bad_beyond_20_mv": "amplitude_beyond_limit",
    }
    headers = header_of(archive)
    accepted = 0
    for stem, quirk in truth(archive).select("stem", "quirk").iter_rows():
        if stem not in headers:
            continue
        try:
            record = read_record(headers[stem])
            profile.apply(record)
        except RejectedRecordError as error:
            assert reasons.get(quirk) == error.reason.value, f"{quirk}: {error}"
        else:
            assert quirk not in reasons, quirk
            assert record.signal.shape[0] == 12
            accepted += 1
    assert accepted == archive.num_headers - archive.num_bad

"""The tables of an archive, written row by row as patients are done, in the layout of a release.

| layout | sites | tables |
|---|---|---|
| 5.0 | I0001, I0006 | metadata, diagnoses_acquisition, diagnoses_v24, dictionary, ICD |
| 4.0 | I0001, I0006 | metadata, diagnoses (one column of codes, no over-read), dictionary, ICD |
| 2.0 | I0001 | Metadata/demographics_ECG.csv, ECG_Interpretations.psv, duplicated.csv |

Nothing but counts is kept in memory, so a table of a million rows needs no more than a small one.
"""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ecgfounder_train.simulate.dictionary import STATEMENTS
from ecgfounder_train.simulate.settings import DEFAULTS

METADATA_COLUMNS = {
    "I0001": (
        *("BDSPPatientID", "FileName", "FileID", "PatientRace", "EthnicGroupDSC"),
        *("MaritalStatusDSC", "ReligionDSC", "LanguageDSC", "VeteranStatusDSC", "SexDSC"),
        *("PrimaryCauseOfDeathDSC", "PrimaryCauseOfDeathUNOS"),
        *("FirstContributoryCauseOfDeathDSC", "FirstContributoryCauseOfDeathUNOS"),
        *("SecondContributoryCauseOfDeathDSC", "SecondContributoryCauseOfDeathUNOS"),
        *("EducationLevelDSC", "GenderIdentityDSC", "SexAssignedAtBirthDSC", "DateOfDeath"),
        *("DateOfDeathMARegistryData", "LastKnownVisitDate", "ECGAcquisitionTime", "DateOfBirth"),
        *("AgeAtAcquisition", "AgeAtDeath", "AgeAtDeathMA", "AgeAtLastVisit"),
    ),
    "I0006": (
        *("BDSPPatientID", "FileName", "FileID", "PatientRace", "Sex", "ECGAcquisitionTime"),
        *("DateOfBirth", "LastKnownVisitDate", "DateOfDeath", "AgeAtAcquisition"),
        *("AgeAtLastVisit", "AgeAtDeath"),
    ),
}
MERGE_COLUMNS = ("OldBDSPPatientID", "NewBDSPPatientID")
TRUTH_COLUMNS = (
    *("stem", "site", "patient", "rhythm", "rate_bpm", "findings", "codes", "codes_physician"),
    *("missed", "quirk"),
)
"""Columns of `simulation/truth.csv`: `codes` is what is really there, `codes_physician` what the
physician wrote (empty: no over-read), `missed` what the physician who did read left out."""
ICD_COLUMNS = ("BDSPPatientID", "DiagnosisDate", "Code", "Description")
COUNTS = (
    *("patients", "merged_patients", "records", "metadata_rows", "v24_rows", "header_files"),
    *("signal_files", "fs_500", "fs_250", "coarse_gain", "nonzero_baseline"),
    *(f"bad_{kind}" for kind in DEFAULTS["bad_records"]),
    *("few_missing_samples", "exact_duplicates", "missing_files", "missing_metadata"),
    *(
        "missing_over_read",
        "missing_acquisition",
        "missing_v24",
        "empty_codes",
        "newline_in_file_name",
    ),
    *("missed_positives", "software_additions", "poor_quality", "mains_hum", "motion", "clipping"),
    *("lead_off", "arm_leads_reversed", "leg_lead_reversed", "chest_leads_reversed"),
    *("blank_patient_ids", "missing_age", "nonpositive_age", "censored_age", "missing_sex"),
)
"""Names of the counts of a site; a quirk that does not occur is counted as 0."""


@dataclass
class Rows:
    """What one patient adds to the tables of a site."""

    metadata: list[dict[str, str]] = field(default_factory=list)
    acquisition: list[tuple[str, str, str, str]] = field(default_factory=list)
    v24: list[tuple[str, str]] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    icd: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    truth: list[tuple[str, ...]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class TableWriter:
    """One CSV file that grows. Fields with the separator or line breaks are quoted."""

    def __init__(self, path: Path, columns: Sequence[str], separator: str = ",") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("w", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n", delimiter=separator)
        self._writer.writerow(columns)

    def add(self, rows: Iterable[Sequence[str]]) -> None:
        """Append rows."""
        self._writer.writerows(rows)

    def close(self) -> None:
        """Write what is still in the buffer."""
        self._file.close()


class SiteTables:
    """All tables of one site, open for writing."""

    def __init__(self, root: Path, site: str, layout: str, blank_rows: Sequence[int]) -> None:
        self._site, self._layout = site, layout
        self._blank_rows = frozenset(blank_rows)
        self._num_rows = 0
        self.counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
        self._tables = {
            name: TableWriter(root / path, columns, "|" if path.endswith(".psv") else ",")
            for name, (path, columns) in _tables_of(site, layout).items()
        }
        if layout != "2.0":
            _write_fixed(root / "ECG" / site, site, layout)

    def add(self, rows: Rows) -> None:
        """Append what one patient adds."""
        self.counts.update(rows.counts)
        self.counts["patients"] += 1
        # The blank id comes first: it makes the whole column floats.
        columns = METADATA_COLUMNS[self._site]
        if self._blank_rows:
            for row in rows.metadata:
                row["BDSPPatientID"] += ".0"
        for number, row in enumerate(rows.metadata, start=self._num_rows):
            if number in self._blank_rows:
                row["BDSPPatientID"] = ""
                self.counts["blank_patient_ids"] += 1
        self._num_rows += len(rows.metadata)
        self.counts["v24_rows"] += len(rows.v24)
        if self._layout == "2.0":
            self._add_2_0(rows)
            return
        metadata = [tuple(row.get(column, "") for column in columns) for row in rows.metadata]
        self._tables["metadata"].add(metadata)
        if self._layout == "4.0":
            self._tables["diagnoses"].add((name.strip(), codes) for name, codes in rows.v24)
        else:
            self._tables["acquisition"].add(rows.acquisition)
            self._tables["v24"].add(rows.v24)
        for version, position in (("icd9", 2), ("icd10", 3)):
            self._tables[version].add((row[0], row[1], row[position], row[4]) for row in rows.icd)

    def _add_2_0(self, rows: Rows) -> None:
        self._tables["demographics"].add(
            (
                row["BDSPPatientID"],
                f".{row['FileName']}.hea",
                row["SexDSC"],
                _years(row["AgeAtAcquisition"]),
            )
            for row in rows.metadata
        )
        self._tables["interpretations"].add(
            (name.strip(), "; ".join(_texts(codes)), codes) for name, codes in rows.v24
        )
        self._tables["duplicated"].add((name,) for name in rows.duplicated)

    def close(self) -> dict[str, int]:
        """Close the files and return the counts by name."""
        for table in self._tables.values():
            table.close()
        return dict(sorted(self.counts.items()))


def signal_folder(layout: str, site: str) -> Path:
    """Return the folder of a site's records below the archive's root."""
    return Path("ECG", "WFDB") if layout == "2.0" else Path("ECG", site, "WFDB")


def _tables_of(site: str, layout: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return path and columns of every table that grows."""
    if layout == "2.0":
        return {
            "demographics": (
                "Metadata/demographics_ECG.csv",
                ("BDSPPatientID", "FileName", "SexDSC", "Age"),
            ),
            "interpretations": (
                "Metadata/ECG_Interpretations.psv",
                ("file_source", "interpretation", "diagnostic_codes"),
            ),
            "duplicated": ("Metadata/duplicated.csv", ("file_name",)),
        }
    root = f"ECG/{site}"
    tables: dict[str, tuple[str, tuple[str, ...]]] = {
        "metadata": (f"{root}/metadata/metadata.csv", METADATA_COLUMNS[site]),
        "icd9": (f"{root}/ICD_codes/icd9_codes.csv", ICD_COLUMNS),
        "icd10": (f"{root}/ICD_codes/icd10_codes.csv", ICD_COLUMNS),
    }
    diagnoses = f"{root}/12SL_diagnoses"
    if layout == "4.0":
        tables["diagnoses"] = (f"{diagnoses}/diagnoses.csv", ("FileName", "codes"))
        return tables
    tables["acquisition"] = (
        f"{diagnoses}/diagnoses_acquisition.csv",
        ("FileName", "codes_software", "codes_physician", "jaccard_index"),
    )
    tables["v24"] = (f"{diagnoses}/diagnoses_v24.csv", ("FileName", "codes"))
    return tables


def _write_fixed(root: Path, site: str, layout: str) -> None:
    """Write what does not depend on patients: the dictionary and the README files."""
    dictionary = TableWriter(
        root / "12SL_diagnoses" / "diagnoses_dictionary.csv", ("codes", "acronym", "diagnoses")
    )
    dictionary.add((str(code), *texts) for code, texts in sorted(STATEMENTS.items()))
    dictionary.close()
    for part in ("metadata", "12SL_diagnoses", "ICD_codes"):
        text = f"Synthetic {part} of site {site}, in the layout of HEEDB {layout}. No real person."
        (root / part / "README").write_text(text + "\n")
    (root / "WFDB").mkdir(exist_ok=True)


def _texts(codes: str) -> list[str]:
    return [STATEMENTS[int(code)][1] for code in codes.split(",") if code.strip()]


def _years(days: str) -> str:
    return str(int(days) // 365) if days else ""

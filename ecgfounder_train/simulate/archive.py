"""A folder like HEEDB 5.0: both sites' records, tables and quirks, and the truth beside them.

```
OUT/ECG/I0001/{metadata,12SL_diagnoses,ICD_codes,WFDB}   .mat, format 16+24
OUT/ECG/I0006/...                                        .dat, format 16
OUT/PatientMergeHistory/PatientMergeHistory.csv
OUT/simulation/{truth.csv,summary.json}                  what HEEDB does not have
```
Every record draws from its own generator, seeded by (seed, site, patient, record), so that the
bytes depend neither on the order of work nor on the number of workers.
"""

import csv
import errno
import io
import json
import multiprocessing
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.simulate.dictionary import STATEMENTS
from ecgfounder_train.simulate.rhythm import Findings
from ecgfounder_train.simulate.settings import DEFAULTS, SITES, check_settings
from ecgfounder_train.simulate.statements import PatientState, sample_findings, statements
from ecgfounder_train.simulate.waveform import simulate_ecg
from ecgfounder_train.simulate.wfdb_write import quantise, write_record

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
FINE_GAIN, COARSE_GAIN = 1000.0, 204.8
"""Digital units per mV; the second is the 4.88 microvolt step of GE's carts."""

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
_ID_PRIME = 9_999_991
_ID_BASE = {"I0001": 110_000_000, "I0006": 170_000_000}
_CENSORED_AGE_DAYS = 90 * 365
_PATIENTS_PER_TASK = 16
_ICD = {
    "atrial_fibrillation": ("427.31", "I48.91", "Unspecified atrial fibrillation"),
    "lbbb": ("426.3", "I44.7", "Left bundle-branch block, unspecified"),
    "rbbb": ("426.4", "I45.10", "Unspecified right bundle-branch block"),
    "wpw": ("426.7", "I45.6", "Pre-excitation syndrome"),
    "inferior_infarct": ("412", "I25.2", "Old myocardial infarction"),
    "anterior_infarct": ("412", "I25.2", "Old myocardial infarction"),
    "lvh": ("429.3", "I51.7", "Cardiomegaly"),
}
_COUNTS = (
    *("patients", "merged_patients", "records", "metadata_rows", "v24_rows", "header_files"),
    *("signal_files", "fs_500", "fs_250", "coarse_gain", "nonzero_baseline"),
    *(f"bad_{kind}" for kind in DEFAULTS["bad_records"]),
    *("few_missing_samples", "exact_duplicates", "missing_files", "missing_metadata"),
    *("missing_over_read", "missing_v24", "empty_codes", "newline_in_file_name"),
    *("blank_patient_ids", "missing_age", "nonpositive_age", "censored_age", "missing_sex"),
)
"""Names of the counts of a site; a quirk that does not occur is counted as 0."""
_RECORDING_FLAGS = ("poor_quality", "arm_leads_reversed")
_STAMP = "%Y%m%d%H%M%S"


@dataclass(frozen=True)
class ArchiveSummary:
    """What was written: totals, and by site every quirk with how often it occurs."""

    root: Path
    num_patients: int
    num_records: int
    counts: dict[str, dict[str, int]]

    @property
    def num_headers(self) -> int:
        """Header files on disk: what a reader that walks the folders finds."""
        return sum(site["header_files"] for site in self.counts.values())

    @property
    def num_bad(self) -> int:
        """Records written with one of the faults of `bad_records`."""
        return sum(
            number
            for site in self.counts.values()
            for name, number in site.items()
            if name.startswith("bad_")
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without the path, for a file that must not depend on the machine."""
        return {
            "num_patients": self.num_patients,
            "num_records": self.num_records,
            "num_headers": self.num_headers,
            "num_bad": self.num_bad,
            "counts": self.counts,
        }


@dataclass
class _Rows:
    """What one patient adds to the tables of a site."""

    metadata: list[dict[str, str]] = field(default_factory=list)
    acquisition: list[tuple[str, str, str, str]] = field(default_factory=list)
    v24: list[tuple[str, str]] = field(default_factory=list)
    icd: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    truth: list[tuple[str, ...]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class _Recording:
    """One ECG of a patient before it is written."""

    stem: str
    folder: str
    acquired: datetime
    patient_id: int
    findings: Findings
    codes: tuple[int, ...]


def write_archive(
    config: Mapping[str, Any], on_progress: Callable[[int, int], None] | None = None
) -> ArchiveSummary:
    """Write a synthetic HEEDB 5.0 archive into `config["out"]` and return what is in it.

    The archive is built beside `out` and renamed when it is whole.

    Args:
        config: `out` and any of `settings.DEFAULTS`.
        on_progress: Called with (patients done, patients in all).

    Raises:
        UserError: An unknown key, an impossible rate, `out` is not an empty folder, disk full.
    """
    settings = check_settings({key: value for key, value in config.items() if key != "out"})
    out = _checked_out(config.get("out"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    except OSError as error:
        raise UserError(f"Cannot write to {out.parent}: {error.strerror}.") from error
    try:
        summary = _write(building, out, settings, on_progress)
        building.chmod(0o755)  # mkdtemp makes folders that only their owner can enter.
        building.replace(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk of {out} is full; nothing was left behind. Free space (a patient takes "
                "about 0.6 MB) or lower num_patients."
            ) from error
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return summary


def _checked_out(value: Any) -> Path:
    if not value:
        raise UserError("out is missing: name the folder to write, for example out=data/heedb.")
    out = Path(str(value)).expanduser()
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file; name a folder that is empty or does not exist.")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"out={out} is not empty; nothing there was touched. Name another folder or delete it."
        )
    return out


def _write(
    building: Path,
    out: Path,
    settings: dict[str, Any],
    on_progress: Callable[[int, int], None] | None,
) -> ArchiveSummary:
    num_patients = settings["num_patients"]
    of_second = round(num_patients * settings["sites"]["I0006"]["share"])
    patients = [("I0001", number) for number in range(num_patients - of_second)]
    patients += [("I0006", number) for number in range(of_second)]
    tasks = [
        patients[first : first + _PATIENTS_PER_TASK]
        for first in range(0, num_patients, _PATIENTS_PER_TASK)
    ]
    by_site: dict[str, list[_Rows]] = {site: [] for site in SITES}
    done = 0
    for task, results in zip(tasks, _run(tasks, building, settings), strict=True):
        for (site, _), rows in zip(task, results, strict=True):
            by_site[site].append(rows)
        done += len(task)
        if on_progress:
            on_progress(done, num_patients)
    counts = {
        site: _write_tables(building / "ECG" / site, site, rows, settings)
        for site, rows in by_site.items()
        if rows
    }
    everyone = [rows for site in SITES for rows in by_site[site]]
    merges = [merge for rows in everyone for merge in rows.merges]
    _write_csv(
        building / "PatientMergeHistory" / "PatientMergeHistory.csv",
        ("OldBDSPPatientID", "NewBDSPPatientID"),
        merges,
    )
    _write_csv(
        building / "simulation" / "truth.csv",
        ("stem", "site", "patient", "rhythm", "rate_bpm", "findings", "codes", "quirk"),
        [row for rows in everyone for row in rows.truth],
    )
    summary = ArchiveSummary(
        root=out,
        num_patients=num_patients,
        num_records=sum(site["records"] for site in counts.values()),
        counts=counts,
    )
    text = json.dumps(summary.to_dict(), indent=1, sort_keys=True)
    (building / "simulation" / "summary.json").write_text(text + "\n")
    return summary


def _run(
    tasks: Sequence[list[tuple[str, int]]], root: Path, settings: dict[str, Any]
) -> Iterator[list[_Rows]]:
    """Yield the rows of every task in order, worked on by this process or by several."""
    if settings["num_workers"] == 1:
        for task in tasks:
            yield _write_patients(task, root, settings)
        return
    # Not fork: callers may hold threads (torch, polars), which do not survive it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings["num_workers"], mp_context=context) as pool:
        futures = [pool.submit(_write_patients, task, root, settings) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write_patients(
    patients: list[tuple[str, int]], root: Path, settings: dict[str, Any]
) -> list[_Rows]:
    return [_write_patient(site, number, root, settings) for site, number in patients]


def _generator(settings: Mapping[str, Any], site: str, *numbers: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.SFC64(np.random.SeedSequence((settings["seed"], SITES.index(site), *numbers)))
    )


def _patient_id(seed: int, site: str, number: int) -> int:
    """Return a 9-digit id that no other patient of either site has (an affine permutation)."""
    return _ID_BASE[site] + (number * 7_654_321 + 1_234_567 * (seed + 1)) % _ID_PRIME


@dataclass(frozen=True)
class _Person:
    """What the tables say of one patient. All dates are shifted."""

    sex: str
    race: str
    birth: datetime
    last_visit: datetime
    death: datetime | None


def _write_patient(site: str, number: int, root: Path, settings: dict[str, Any]) -> _Rows:
    """Write all files of one patient and return the rows for the tables."""
    rng = _generator(settings, site, number)
    age_days = int(365.25 * np.clip(rng.normal(61.0, 18.0), 3.0, 101.0))
    sex = str(rng.choice(["Male", "Female"]))
    state = PatientState.sample(rng, age_days / 365.25, sex == "Female", settings["prevalences"])
    num_records = int(rng.geometric(1.0 / settings["sites"][site]["ecgs_per_patient"]))
    first_seen = datetime(int(rng.integers(1988, 2020)), 1, 1) + timedelta(
        days=int(rng.integers(365)), seconds=int(rng.integers(86400))
    )
    # Dates in names and tables are moved by one offset per patient; the folders keep the true year.
    shift = timedelta(days=int(rng.integers(-3650, 3650)) + 43_000)
    gaps_s = rng.exponential(150 * 86400.0, num_records).astype(np.int64) + 61
    times = [first_seen + timedelta(seconds=int(seconds)) for seconds in np.cumsum(gaps_s)]
    last_visit = times[-1] + shift + timedelta(days=int(rng.integers(1, 900)))
    is_dead = rng.random() < 0.15
    person = _Person(
        sex="" if rng.random() < settings["missing_sex"] else sex,
        race=str(rng.choice(["White", "Black or African American", "Asian", "Other", ""])),
        birth=times[0] + shift - timedelta(days=age_days),
        last_visit=last_visit,
        death=last_visit + timedelta(days=int(rng.integers(30, 4000))) if is_dead else None,
    )
    writer = _PatientWriter(site, root, settings, state, person)
    rows = writer.rows
    patient_id = old_id = _patient_id(settings["seed"], site, number)
    if num_records > 1 and rng.random() < settings["merged_patients"]:
        # Registered twice: an id of its own for the first half of the records, merged later.
        old_id = patient_id + _ID_PRIME
        rows.merges.append((str(old_id), str(patient_id)))
        rows.counts["merged_patients"] += 1
    station = f"S{int(rng.integers(1, 5)):04d}"
    for index, time in enumerate(times):
        draw = _generator(settings, site, number, index + 1)
        findings, codes = writer.interpret(draw, has_previous=index > 0)
        own_id = old_id if index < num_records // 2 else patient_id
        acquired = time + shift
        if site == "I0001":
            stored = acquired + timedelta(seconds=int(draw.integers(30, 86400)))
            stem = f"de_{own_id}_{acquired:{_STAMP}}_{stored:{_STAMP}}"
            folder = f"{station}/{time:%Y/%m}"
        else:
            # Five digits made of patient and record keep names apart that share a second.
            tail = (number * 977 + index * 13) % 100_000
            stem = f"MUSE_{acquired:%Y%m%d}_{acquired:%H%M%S}_{tail:05d}"
            folder = f"{time:%Y}"
        recording = _Recording(stem, folder, acquired, own_id, findings, codes)
        # Signals have a generator of their own: tables are the same with and without them.
        signal_draw = _generator(settings, site, number, index + 1, 1)
        is_plain = writer.write(draw, signal_draw, recording)
        if is_plain and draw.random() < settings["exact_duplicates"]:
            writer.write_duplicate(draw, recording)
    for name in sorted(state.lasting & _ICD.keys()):
        rows.icd.append((str(patient_id), f"{times[0] + shift:%Y-%m-%d}", *_ICD[name]))
    return rows


@dataclass
class _PatientWriter:
    """Writes the recordings of one patient and gathers the table rows."""

    site: str
    root: Path
    settings: dict[str, Any]
    state: PatientState
    person: _Person
    rows: _Rows = field(default_factory=_Rows)

    @property
    def suffix(self) -> str:
        return ".mat" if self.site == "I0001" else ".dat"

    def interpret(
        self, draw: np.random.Generator, has_previous: bool
    ) -> tuple[Findings, tuple[int, ...]]:
        """Return what the next ECG shows and what is said of it."""
        findings = sample_findings(draw, self.state, self.settings["prevalences"])
        flags = {flag for flag in _RECORDING_FLAGS if draw.random() < self.settings[flag]}
        findings = replace(findings, flags=findings.flags | flags)
        codes, findings = statements(
            draw, findings, self.state.is_child, has_previous, self.settings["weakened_statements"]
        )
        return findings, codes

    def write(
        self,
        draw: np.random.Generator,
        signal_draw: np.random.Generator,
        recording: _Recording,
    ) -> bool:
        """Write files and rows of one recording with its quirks; tell whether it has none."""
        settings = self.settings
        bad = _bad_kind(draw, settings["bad_records"])
        fs = 500.0 if draw.random() < settings["fs_500_share"] else 250.0
        gain = COARSE_GAIN if draw.random() < settings["coarse_gain_share"] else FINE_GAIN
        has_baseline = draw.random() < settings["nonzero_baseline_share"]
        baseline = int(draw.integers(1, 200)) if has_baseline else 0
        few_missing = draw.random() < settings["few_missing_samples"] and not bad
        # Files without a table row and table rows without files.
        orphan = draw.random()
        edge = settings["missing_files"]
        without_files = not bad and orphan < edge
        without_row = not bad and edge <= orphan < edge + settings["missing_metadata"]
        is_written = settings["write_signals"] and not without_files
        self._count(
            {
                "missing_files": without_files,
                "missing_metadata": without_row,
                f"bad_{bad}": bool(bad) and is_written,
                "few_missing_samples": few_missing and is_written,
                "nonzero_baseline": has_baseline and is_written,
                "coarse_gain": gain == COARSE_GAIN and is_written,
                f"fs_{fs:.0f}": is_written,
                "header_files": is_written,
                "signal_files": is_written and bad != "missing_signal_file",
            }
        )
        if is_written:
            duration_s = settings["duration_s"]
            signal = simulate_ecg(
                signal_draw, recording.findings, fs, duration_s, self.state.anatomy
            )
            signal, leads = _spoil(signal_draw, signal, fs, bad, few_missing)
            digital = quantise(signal, gain, baseline)
            folder = self._folder(recording)
            folder.mkdir(parents=True, exist_ok=True)
            write_record(
                *(folder, recording.stem, digital, leads, fs, gain, baseline, self.suffix),
                start_time=recording.acquired,
            )
            _spoil_files(signal_draw, folder / recording.stem, self.suffix, bad)
        quirk = f"bad_{bad}" if bad else "few_missing_samples" if few_missing else ""
        quirk = "missing_files" if without_files else "missing_metadata" if without_row else quirk
        self._add_truth(recording, quirk)
        if not without_row:
            self._add_rows(draw, recording)
        return not (bad or without_files or without_row)

    def write_duplicate(self, draw: np.random.Generator, recording: _Recording) -> None:
        """Store a recording a second time under another name: the same samples, sent twice."""
        beginning, last = recording.stem.rsplit("_", 1)
        if self.site == "I0001":
            last = f"{datetime.strptime(last, _STAMP) + timedelta(seconds=1):{_STAMP}}"
        else:
            last = f"{(int(last) + 1) % 100_000:05d}"
        again = f"{beginning}_{last}"
        if self.settings["write_signals"]:
            folder = self._folder(recording)
            text = (folder / f"{recording.stem}.hea").read_text()
            (folder / f"{again}.hea").write_text(text.replace(recording.stem, again))
            shutil.copyfile(
                folder / f"{recording.stem}{self.suffix}", folder / f"{again}{self.suffix}"
            )
            self._count({"header_files": True, "signal_files": True})
        self._count({"exact_duplicates": True})
        recording = replace(recording, stem=again)
        self._add_truth(recording, "duplicate")
        self._add_rows(draw, recording)

    def _count(self, found: Mapping[str, bool]) -> None:
        self.rows.counts.update(name for name, is_so in found.items() if is_so)

    def _folder(self, recording: _Recording) -> Path:
        return self.root / "ECG" / self.site / "WFDB" / recording.folder

    def _table_name(self, recording: _Recording) -> str:
        prefix = "/" if self.site == "I0001" else "WFDB/"
        return f"{prefix}{recording.folder}/{recording.stem}"

    def _add_truth(self, recording: _Recording, quirk: str) -> None:
        findings = recording.findings
        self._count({"records": True})
        self.rows.truth.append(
            (
                recording.stem,
                self.site,
                str(recording.patient_id),
                findings.rhythm,
                f"{findings.rate_bpm:.1f}",
                " ".join(sorted(findings.flags)),
                " ".join(map(str, recording.codes)),
                quirk,
            )
        )

    def _add_rows(self, draw: np.random.Generator, recording: _Recording) -> None:
        """Add a recording to the tables."""
        rates = self.settings["sites"][self.site]
        mixed = rates["mixed_separators"]
        self.rows.metadata.append(self._metadata_row(draw, recording))
        rate = self.settings["software_disagreement"]
        software, v24 = (
            _disagree(draw, recording.codes, rate),
            _disagree(draw, recording.codes, rate),
        )
        software_cell, physician_cell = (
            _cell(draw, software, mixed),
            _cell(draw, recording.codes, mixed),
        )
        agreement = f"{_jaccard(software, recording.codes):.4f}"
        if draw.random() < rates["missing_over_read"]:
            physician_cell = agreement = ""
            self._count({"missing_over_read": True})
        name = self._table_name(recording)
        self.rows.acquisition.append((name, software_cell, physician_cell, agreement))
        v24_cell = _cell(draw, v24, mixed)
        is_missing = draw.random() < rates["missing_v24"]
        is_empty = draw.random() < rates["empty_codes"] and not is_missing
        has_newline = self.site == "I0001" and not is_missing
        self._count(
            {
                "metadata_rows": True,
                "missing_v24": is_missing,
                "empty_codes": is_empty,
                "newline_in_file_name": has_newline,
            }
        )
        if has_newline:
            name = f".{name}.hea\n"  # The newline is HEEDB's own, inside the quotes.
        if not is_missing:
            self.rows.v24.append((name, "" if is_empty else v24_cell))

    def _metadata_row(self, draw: np.random.Generator, recording: _Recording) -> dict[str, str]:
        settings, person = self.settings, self.person
        days = (recording.acquired - person.birth).days
        age = str(min(days, _CENSORED_AGE_DAYS))
        odd = draw.random()
        is_missing = odd < settings["missing_age"]
        is_odd = not is_missing and odd < settings["missing_age"] + settings["nonpositive_age"]
        if is_missing:
            age = ""
        elif is_odd:
            age = str(-int(draw.integers(0, 400)))
        self._count(
            {
                "missing_age": is_missing,
                "nonpositive_age": is_odd,
                "censored_age": days > _CENSORED_AGE_DAYS and not (is_missing or is_odd),
                "missing_sex": not person.sex,
            }
        )
        row = {
            "BDSPPatientID": str(recording.patient_id),
            "FileName": self._table_name(recording),
            "FileID": recording.stem.rsplit("_", 1)[-1],
            "PatientRace": person.race,
            "ECGAcquisitionTime": f"{recording.acquired:%Y-%m-%d %H:%M:%S}",
            "DateOfBirth": f"{person.birth:%Y-%m-%d}",
            "LastKnownVisitDate": f"{person.last_visit:%Y-%m-%d}",
            "AgeAtAcquisition": age,
            "AgeAtLastVisit": _age_days(person.last_visit, person),
        }
        if person.death:
            row["DateOfDeath"] = f"{person.death:%Y-%m-%d}"
            row["AgeAtDeath"] = _age_days(person.death, person)
        if self.site == "I0001":
            row |= {
                "SexDSC": person.sex,
                "SexAssignedAtBirthDSC": person.sex,
                "LanguageDSC": "English",
                "EthnicGroupDSC": "Not Hispanic, Latino or Spanish",  # A comma inside quotes.
            }
        else:
            row["Sex"] = person.sex
        return row


def _age_days(when: datetime, person: _Person) -> str:
    return str(min((when - person.birth).days, _CENSORED_AGE_DAYS))


def _bad_kind(draw: np.random.Generator, rates: Mapping[str, float]) -> str:
    """Return the one thing wrong with a record, or an empty string."""
    position = int(np.searchsorted(np.cumsum(list(rates.values())), draw.random(), side="right"))
    return list(rates)[position] if position < len(rates) else ""


def _spoil(
    draw: np.random.Generator,
    signal: NDArray[np.float32],
    fs: float,
    bad: str,
    few_missing: bool,
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Return the signal with its fault, and the leads that are in it."""
    num_samples = signal.shape[1]
    lead = int(draw.integers(12))
    leads: tuple[str, ...] = LEADS
    if bad == "not_12_leads":
        number = int(draw.choice([3, 8, 11]))
        signal, leads = signal[:number], LEADS[:number]
    elif bad == "all_zero":
        signal = np.zeros_like(signal)
    elif bad == "constant_lead":
        signal[lead] = np.float32(draw.choice([0.0, 0.35, -1.2]))
    elif bad == "too_short":
        signal = signal[:, : int(fs * draw.uniform(0.4, 3.5))]
    elif bad == "missing_samples":
        first = int(draw.uniform(0.0, 0.5) * num_samples)
        signal[lead, first : first + int(draw.uniform(0.05, 0.4) * num_samples)] = np.nan
    elif bad == "beyond_20_mv":
        first = int(draw.uniform(0.1, 0.8) * num_samples)
        signal[lead, first : first + int(0.1 * fs)] += np.float32(draw.uniform(26.0, 30.0))
    elif few_missing:
        first = int(draw.uniform(0.1, 0.8) * num_samples)
        signal[lead, first : first + int(draw.integers(2, max(3, num_samples // 150)))] = np.nan
    return signal, leads


def _spoil_files(draw: np.random.Generator, path: Path, suffix: str, bad: str) -> None:
    """Damage the two files of a record as `bad` says."""
    header, signal = path.with_name(f"{path.name}.hea"), path.with_name(f"{path.name}{suffix}")
    if bad == "missing_signal_file":
        signal.unlink()
    elif bad == "truncated_signal":
        content = signal.read_bytes()
        signal.write_bytes(content[: int(draw.uniform(0.05, 0.95) * len(content))])
    elif bad == "unreadable_header":
        header.write_bytes(
            b"" if draw.random() < 0.3 else draw.integers(128, 256, 200).astype(np.uint8).tobytes()
        )


def _disagree(draw: np.random.Generator, codes: tuple[int, ...], rate: float) -> tuple[int, ...]:
    """Return codes as another reader gives them: each but the last is left out at `rate`."""
    kept = draw.random(len(codes)) >= rate
    kept[-1] = True
    return tuple(code for code, is_kept in zip(codes, kept.tolist(), strict=True) if is_kept)


def _cell(draw: np.random.Generator, codes: tuple[int, ...], mixed: float) -> str:
    """Return codes separated by comma and space, in some cells by commas alone here and there."""
    words = [str(code) for code in codes]
    if mixed and draw.random() < mixed:
        separators = draw.choice([", ", ","], len(words)).tolist()
        return "".join(a + b for a, b in zip(words, [*separators[1:], ""], strict=True))
    return ", ".join(words)


def _jaccard(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    return len({*one} & {*other}) / max(1, len({*one} | {*other}))


def _write_tables(
    root: Path, site: str, patients: Sequence[_Rows], settings: dict[str, Any]
) -> dict[str, int]:
    """Write all tables of one site and return its counts."""
    counts: Counter[str] = Counter(dict.fromkeys(_COUNTS, 0))
    for rows in patients:
        counts.update(rows.counts)
    counts["patients"] = len(patients)
    metadata = [row for rows in patients for row in rows.metadata]
    if site == "I0006":
        # One blank turned the whole column into floats when the table was made.
        blanks = min(settings["blank_patient_ids"], len(metadata))
        rng = _generator(settings, site)
        for index in rng.choice(len(metadata), blanks, replace=False).tolist():
            metadata[index] = {**metadata[index], "BDSPPatientID": ""}
        counts["blank_patient_ids"] = blanks
        if blanks:
            for row in metadata:
                row["BDSPPatientID"] += ".0" if row["BDSPPatientID"] else ""
    columns = METADATA_COLUMNS[site]
    _write_csv(
        root / "metadata" / "metadata.csv",
        columns,
        [tuple(row.get(column, "") for column in columns) for row in metadata],
    )
    diagnoses = root / "12SL_diagnoses"
    _write_csv(
        diagnoses / "diagnoses_acquisition.csv",
        ("FileName", "codes_software", "codes_physician", "jaccard_index"),
        [row for rows in patients for row in rows.acquisition],
    )
    v24 = [row for rows in patients for row in rows.v24]
    counts["v24_rows"] = len(v24)
    _write_csv(diagnoses / "diagnoses_v24.csv", ("FileName", "codes"), v24)
    _write_csv(
        diagnoses / "diagnoses_dictionary.csv",
        ("codes", "acronym", "diagnoses"),
        [(str(code), *texts) for code, texts in sorted(STATEMENTS.items())],
    )
    icd = [row for rows in patients for row in rows.icd]
    columns = ("BDSPPatientID", "DiagnosisDate", "Code", "Description")
    for version, position in (("9", 2), ("10", 3)):
        _write_csv(
            root / "ICD_codes" / f"icd{version}_codes.csv",
            columns,
            [(row[0], row[1], row[position], row[4]) for row in icd],
        )
    for part in ("metadata", "12SL_diagnoses", "ICD_codes"):
        text = (
            f"Synthetic {part} of site {site}, made in the layout of HEEDB 5.0. No real person.\n"
        )
        (root / part / "README").write_text(text)
    (root / "WFDB").mkdir(exist_ok=True)
    return dict(sorted(counts.items()))


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table; fields with commas or line breaks are quoted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    path.write_text(text.getvalue(), newline="")

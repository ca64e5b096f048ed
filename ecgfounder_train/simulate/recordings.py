"""One patient's recordings: their files, and what they add to the tables.

Every record draws from its own generator, seeded by (seed, site, patient, record), so that the
bytes depend neither on the order of work nor on the number of workers.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.simulate.dictionary import ALTERNATIVES
from ecgfounder_train.simulate.events import Findings
from ecgfounder_train.simulate.faults import bad_kind, spoil, spoil_files
from ecgfounder_train.simulate.morphology import RECORDING_FLAGS
from ecgfounder_train.simulate.patients import PatientState, sample_findings
from ecgfounder_train.simulate.settings import SITES
from ecgfounder_train.simulate.statements import statements
from ecgfounder_train.simulate.tables import Rows, signal_folder
from ecgfounder_train.simulate.waveform import simulate_ecg
from ecgfounder_train.simulate.wfdb_write import quantise, write_record

FINE_GAIN, COARSE_GAIN = 1000.0, 204.8
"""Digital units per mV; the second is the 4.88 microvolt step of GE's carts."""

ID_PRIME = 9_999_991
"""Added to a patient's id it gives the one of a registration that was merged later."""
_ID_BASE = {"I0001": 110_000_000, "I0006": 170_000_000}
_CENSORED_AGE_DAYS = 90 * 365
_OVERCALLED = (700, 780, 360, 540, 1140, 900, 372, 410, 161, 1143)
"""Statements a computer makes too often; a physician takes them back."""
_ICD = {
    "atrial_fibrillation": ("427.31", "I48.91", "Unspecified atrial fibrillation"),
    "lbbb": ("426.3", "I44.7", "Left bundle-branch block, unspecified"),
    "rbbb": ("426.4", "I45.10", "Unspecified right bundle-branch block"),
    "wpw": ("426.7", "I45.6", "Pre-excitation syndrome"),
    "inferior_infarct": ("412", "I25.2", "Old myocardial infarction"),
    "anterior_infarct": ("412", "I25.2", "Old myocardial infarction"),
    "lvh": ("429.3", "I51.7", "Cardiomegaly"),
}
_STAMP = "%Y%m%d%H%M%S"
Number = TypeVar("Number", int, NDArray[np.int64])
_made: set[Path] = set()
"""Folders this process made: asking the file system again for every record costs more."""


@dataclass(frozen=True)
class _Recording:
    """One ECG of a patient before it is written."""

    stem: str
    folder: str
    acquired: datetime
    patient_id: int
    findings: Findings
    codes: tuple[int, ...]


def _make(folder: Path) -> None:
    if folder not in _made:
        folder.mkdir(parents=True, exist_ok=True)
        _made.add(folder)


def write_patients(
    patients: list[tuple[str, int]], root: Path, settings: dict[str, Any]
) -> list[Rows]:
    return [_write_patient(site, number, root, settings) for site, number in patients]


def generator(settings: Mapping[str, Any], site: str, *numbers: int) -> np.random.Generator:
    return np.random.Generator(
        np.random.SFC64(np.random.SeedSequence((settings["seed"], SITES.index(site), *numbers)))
    )


def patient_id(seed: int, site: str, number: Number) -> Number:
    """Return a 9-digit id that no other patient of either site has (an affine permutation)."""
    return _ID_BASE[site] + (number * 7_654_321 + 1_234_567 * (seed + 1)) % ID_PRIME


@dataclass(frozen=True)
class _Person:
    """What the tables say of one patient. All dates are shifted."""

    sex: str
    race: str
    birth: datetime
    last_visit: datetime
    death: datetime | None


def _write_patient(site: str, number: int, root: Path, settings: dict[str, Any]) -> Rows:
    """Write all files of one patient and return the rows for the tables."""
    rng = generator(settings, site, number)
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
    new_id = old_id = patient_id(settings["seed"], site, number)
    if num_records > 1 and rng.random() < settings["merged_patients"]:
        # Registered twice: an id of its own for the first half of the records, merged later.
        old_id = new_id + ID_PRIME
        rows.merges.append((str(old_id), str(new_id)))
        rows.counts["merged_patients"] += 1
    station = f"S{int(rng.integers(1, 5)):04d}"
    for index, time in enumerate(times):
        draw = generator(settings, site, number, index + 1)
        findings, codes = writer.interpret(draw, has_previous=index > 0)
        own_id = old_id if index < num_records // 2 else new_id
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
        seeds = (site, number, index + 1, 1)
        is_plain = writer.write(draw, seeds, recording)
        if is_plain and draw.random() < settings["exact_duplicates"]:
            writer.write_duplicate(draw, recording)
    for name in sorted(state.lasting & _ICD.keys()):
        rows.icd.append((str(new_id), f"{times[0] + shift:%Y-%m-%d}", *_ICD[name]))
    return rows


@dataclass
class _PatientWriter:
    """Writes the recordings of one patient and gathers the table rows."""

    site: str
    root: Path
    settings: dict[str, Any]
    state: PatientState
    person: _Person
    rows: Rows = field(default_factory=Rows)

    @property
    def suffix(self) -> str:
        return ".mat" if self.site == "I0001" else ".dat"

    def interpret(
        self, draw: np.random.Generator, has_previous: bool
    ) -> tuple[Findings, tuple[int, ...]]:
        """Return what the next ECG shows and what is said of it."""
        settings = self.settings
        findings = sample_findings(draw, self.state, settings["prevalences"])
        rates = [self.settings["recording"][flag] for flag in RECORDING_FLAGS]
        drawn = draw.random(len(RECORDING_FLAGS)) < rates
        flags = {flag for flag, is_so in zip(RECORDING_FLAGS, drawn, strict=True) if is_so}
        if "arm_leads_reversed" in flags:  # One pair of cables at a time.
            flags.discard("leg_lead_reversed")
        self._count(dict.fromkeys(flags, True))
        findings = replace(findings, flags=findings.flags | flags)
        codes, findings = statements(
            draw, findings, self.state.is_child, has_previous, self.settings["weakened_statements"]
        )
        if draw.random() < settings["alternative_codes"] * len(codes):
            # At most one per cell: the chance of a cell is that of its statements together.
            index = int(draw.integers(len(codes)))
            others = ALTERNATIVES.get(codes[index])
            if others:
                codes = (*codes[:index], int(draw.choice(others)), *codes[index + 1 :])
        return findings, codes

    def write(
        self,
        draw: np.random.Generator,
        seeds: tuple[str, int, int, int],
        recording: _Recording,
    ) -> bool:
        """Write files and rows of one recording with its quirks; tell whether it has none."""
        settings = self.settings
        bad = bad_kind(draw, settings["bad_records"])
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
            signal_draw = generator(settings, *seeds)
            duration_s = settings["duration_s"]
            signal = simulate_ecg(
                *(signal_draw, recording.findings, fs, duration_s, self.state.anatomy),
                mains_hz=settings["mains_hz"],
            )
            signal, leads = spoil(signal_draw, signal, fs, bad, few_missing)
            digital = quantise(signal, gain, baseline)
            folder = self._folder(recording)
            _make(folder)
            write_record(
                *(folder, recording.stem, digital, leads, fs, gain, baseline, self.suffix),
                start_time=recording.acquired,
            )
            spoil_files(signal_draw, folder / recording.stem, self.suffix, bad)
        quirk = f"bad_{bad}" if bad else "few_missing_samples" if few_missing else ""
        quirk = "missing_files" if without_files else "missing_metadata" if without_row else quirk
        said = () if without_row else self._add_rows(draw, recording)
        self._add_truth(recording, quirk, said)
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
        said = self._add_rows(draw, recording)
        self._add_truth(recording, "duplicate", said)
        self.rows.duplicated.append(f".{self._table_name(recording)}.hea")

    def _count(self, found: Mapping[str, bool]) -> None:
        self.rows.counts.update(name for name, is_so in found.items() if is_so)

    def _folder(self, recording: _Recording) -> Path:
        return self.root / signal_folder(self.settings["layout"], self.site) / recording.folder

    def _table_name(self, recording: _Recording) -> str:
        prefix = "/" if self.site == "I0001" else "WFDB/"
        return f"{prefix}{recording.folder}/{recording.stem}"

    def _add_truth(self, recording: _Recording, quirk: str, said: tuple[int, ...]) -> None:
        """Add what was really there, what the physician wrote (if anything) and left out."""
        missed = [code for code in recording.codes if said and code not in said]
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
                " ".join(map(str, said)),
                " ".join(map(str, missed)),
                quirk,
            )
        )

    def _add_rows(self, draw: np.random.Generator, recording: _Recording) -> tuple[int, ...]:
        """Add a recording to the tables; return what the physician says, empty if nothing."""
        settings, rates = self.settings, self.settings["sites"][self.site]
        mixed = rates["mixed_separators"]
        self.rows.metadata.append(self._metadata_row(draw, recording))
        said = _left_out(draw, recording.codes, settings["missed_positives"])
        # The two versions of the software err each in its own way.
        software, v24 = (self._by_software(draw, said) for _ in range(2))
        software_cell, physician_cell = _cell(draw, software, mixed), _cell(draw, said, mixed)
        agreement = f"{_jaccard(software, said):.4f}"
        self.rows.counts["missed_positives"] += len(recording.codes) - len(said)
        if draw.random() < rates["missing_over_read"]:
            said, physician_cell, agreement = (), "", ""
            self._count({"missing_over_read": True})
        name = self._table_name(recording)
        if draw.random() < rates["missing_acquisition"]:
            said = ()
            self._count({"missing_acquisition": True})
        else:
            self.rows.acquisition.append((name, software_cell, physician_cell, agreement))
        v24_cell = _cell(draw, v24, mixed)
        is_missing = draw.random() < rates["missing_v24"]
        is_empty = draw.random() < rates["empty_codes"] and not is_missing
        has_newline = self.site == "I0001" and not is_missing and self.settings["layout"] == "5.0"
        self._count(
            {
                "metadata_rows": True,
                "missing_v24": is_missing,
                "empty_codes": is_empty,
                "newline_in_file_name": has_newline,
            }
        )
        if self.site == "I0001":
            name = f".{name}.hea"
        if has_newline:
            name += "\n"  # The newline is HEEDB's own, inside the quotes.
        if not is_missing:
            self.rows.v24.append((name, "" if is_empty else v24_cell))
        return said

    def _by_software(self, draw: np.random.Generator, said: tuple[int, ...]) -> tuple[int, ...]:
        """Return what a computer makes of the ECG: statements left out, and one too many."""
        codes = _left_out(draw, said, self.settings["software_disagreement"])
        if draw.random() < self.settings["software_additions"]:
            extra = int(draw.choice(_OVERCALLED))
            if extra not in codes:
                self._count({"software_additions": True})
                codes = (*codes[:-1], extra, codes[-1])
        return codes

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


def _left_out(draw: np.random.Generator, codes: tuple[int, ...], rate: float) -> tuple[int, ...]:
    """Return codes of which each was overlooked at `rate`; the overall class at the end never is.

    What belongs to a statement (its weakening, "age undetermined") stays or goes by itself, as in
    cells edited by hand.
    """
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

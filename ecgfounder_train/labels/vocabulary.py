"""A vocabulary: which labels, in which order, and which statements make each of them positive.

A vocabulary is a CSV file, here in `data/` or anywhere a user keeps one. Only `label` is required:

| column | meaning |
|---|---|
| `label` | the label's name; the order of the rows is the order of a network's outputs |
| `codes` | statements that make it positive, separated by `|`; left out: the name itself |
| `alternatives` | further codes, less sure; see the option `alternatives` |
| `parents` | labels that hold whenever this one does; see the option `closure` |
| `group` | names a set of labels (PTB-XL: `superclass`) |
| `observed_when` | `statement` (default), or `group_positive`: see below |
| `role` | `label` (default), or `weakener`: a statement that weakens the one after it |

Any other column is kept for reports. The shipped vocabularies have the SNOMED CT code (`snomed`)
and the SCP-ECG statement (`scp`) of a label where one is known, and in `snomed_match` and
`scp_match` what the code is against the label: `exact`, `broader`, `narrower` or `related`. SNOMED
CT codes are those of the PhysioNet/CinC Challenge 2021 (`dx_mapping_*.csv`), statements PTB-XL's.

`observed_when=group_positive` leaves all labels of a group unobserved in a record that has none of
them. The PTB-XL benchmark drops records without a superclass from the five-superclass task
(Strodthoff et al. 2020, doi:10.1109/JBHI.2020.3022989); unobserved labels have the same effect, and
records without any observed label are not written.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ecgfounder_train.core.csv_files import read_csv
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.labels.kernels import gather_bits
from ecgfounder_train.labels.packing import pack, unpack

DATA_FOLDER = Path(__file__).parent / "data"
SEPARATOR = "|"
OPTIONS: dict[str, tuple[str, ...]] = {
    "match": ("code", "substring", "words"),
    "closure": ("parents", "none"),
    "weakened": ("positive", "unobserved", "negative"),
    "alternatives": ("unclaimed", "none", "all"),
}
"""Options and their values, the default first.

* `match`: `code` compares a statement with the label's codes. `substring` looks for the label's
  text inside the statement's text, as the first author's notebook does, with what follows from it:
  NORMAL ECG fires on ABNORMAL ECG (`label_containment.csv` of the reference lists 33 such pairs).
  `words` looks for whole words, of labels one inside another takes the longest, skips what a
  sentence denies and counts what it leaves open as weakened: for reports, such as MIMIC-IV-ECG's.
  Where a report says that the rest was not analysed, only what it states is observed.
* `closure`: `parents` sets a label's parents with it: code 478, RBBB and left anterior fascicular
  block, also sets RBBB. With `none` a label is negative in records that state a form of it.
* `weakened`: what "possible" or "cannot rule out" before a statement makes of it. `positive` as
  the published labels have it (the text is present), `unobserved` (masked), or `negative`.
* `alternatives`: `unclaimed` uses an alternative code unless it is a main code of any label or the
  alternative of two (371, 381 and 821 of the 150: main codes decide); `none`; or `all`.
"""

_CHUNK_RECORDS = 250_000
"""Records encoded at once: 30 MB of intermediate bits at 6 statements and 150 labels."""


def vocabulary_names() -> tuple[str, ...]:
    """Return the names of the vocabularies that come with the package."""
    return tuple(sorted(path.stem for path in DATA_FOLDER.glob("*.csv")))


def label_names(name_or_path: str | Path) -> tuple[str, ...]:
    """Return the ordered label names of a vocabulary."""
    return Vocabulary.load(name_or_path).labels


@dataclass(frozen=True)
class Label:
    """One row of a vocabulary file."""

    name: str
    codes: tuple[str, ...]
    alternatives: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    group: str = ""
    observed_when: str = "statement"
    notes: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class EncodedLabels:
    """Packed values and observed flags of many records, and how often each statement came.

    Shape: `values` and `observed` are uint8 (num_records, ceil(num_labels / 8)).
    """

    values: npt.NDArray[np.uint8]
    observed: npt.NDArray[np.uint8]
    statement_counts: Mapping[str, int]


@dataclass(frozen=True)
class Vocabulary:
    """Ordered labels, the statements behind them and the options of reading them."""

    name: str
    entries: tuple[Label, ...]
    weakeners: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    match: str = "code"
    closure: str = "parents"
    weakened: str = "positive"
    alternatives: str = "unclaimed"
    texts: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        match: str = "code",
        closure: str = "parents",
        weakened: str = "positive",
        alternatives: str = "unclaimed",
    ) -> "Vocabulary":
        """Return the vocabulary of that name, or of a CSV file at that path.

        Raises:
            UserError: No such vocabulary, an invalid file, or an unknown option value.
        """
        options = {
            "match": match,
            "closure": closure,
            "weakened": weakened,
            "alternatives": alternatives,
        }
        for key, value in options.items():
            if value not in OPTIONS[key]:
                raise UserError(
                    f"labels.{key}={value} is not an option.{did_you_mean(value, OPTIONS[key])}"
                )
        path = _find(name_or_path)
        entries, weakeners = _read(path)
        return cls(
            path.stem,
            entries,
            weakeners,
            match=match,
            closure=closure,
            weakened=weakened,
            alternatives=alternatives,
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Vocabulary":
        """Return the vocabulary of a `configs/labels` group: `name` and the options.

        Raises:
            UserError: As `load`, or an unknown key.
        """
        valid = ("name", *OPTIONS)
        for key in config:
            if key not in valid:
                raise UserError(f"labels.{key} is not a setting.{did_you_mean(str(key), valid)}")
        if "name" not in config:
            raise UserError("labels.name is missing: name a vocabulary or give the path of a CSV.")
        options = {key: str(value) for key, value in config.items() if key != "name"}
        return cls.load(str(config["name"]), **options)

    def with_texts(self, texts: Mapping[str, str]) -> "Vocabulary":
        """Return the same vocabulary with the text of each statement code.

        `match=substring` reads them, and a code whose text is a weakener's weakens as well.
        """
        return replace(self, texts=dict(texts))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label names in order."""
        return tuple(entry.name for entry in self.entries)

    @property
    def num_labels(self) -> int:
        """Number of labels."""
        return len(self.entries)

    @property
    def groups(self) -> tuple[str, ...]:
        """Group of each label, empty where it has none."""
        return tuple(entry.group for entry in self.entries)

    @property
    def options(self) -> dict[str, str]:
        """The options by name."""
        return {key: str(getattr(self, key)) for key in OPTIONS}

    @cached_property
    def fingerprint(self) -> str:
        """Changes with any label, its place, its codes or an option; not with the file's name."""
        return fingerprint(
            {
                "labels": [
                    [e.name, e.codes, e.alternatives, e.parents, e.group, e.observed_when]
                    for e in self.entries
                ],
                "weakeners": {phrase: list(codes) for phrase, codes in self.weakeners.items()},
                "options": self.options,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what a manifest holds: name, labels, options, fingerprint."""
        return {
            "name": self.name,
            "labels": list(self.labels),
            "groups": list(self.groups),
            "options": self.options,
            "fingerprint": self.fingerprint,
        }

    def encode(
        self, statements: Sequence[str] | None
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return values and observed flags of one record; None: without an over-read.

        Shape: two uint8 arrays (num_labels,). A value is 0 wherever its label is unobserved.
        """
        cell = None if statements is None else list(statements)
        encoded = self.encode_many(pl.Series([cell], dtype=pl.List(pl.String)))
        return (
            unpack(encoded.values[0], self.num_labels),
            unpack(encoded.observed[0], self.num_labels),
        )

    def encode_many(self, statements: pl.Series) -> EncodedLabels:
        """Return packed values and observed flags of many records.

        Args:
            statements: One list of statements per record, in order; null: without an over-read.
        """
        width = (self.num_labels + 7) // 8
        values = np.zeros((len(statements), width), np.uint8)
        observed = np.zeros((len(statements), width), np.uint8)
        counts: dict[str, int] = {}
        for start in range(0, len(statements), _CHUNK_RECORDS):
            part = slice(start, start + _CHUNK_RECORDS)
            values[part], observed[part] = self._encode_chunk(
                statements.slice(start, _CHUNK_RECORDS), counts
            )
        return EncodedLabels(values, observed, counts)

    def knows(self, statement: str) -> bool:
        """Return whether a statement bears on any label (or weakens another statement)."""
        if self.match == "words" and self._words_of(statement)[1]:
            return True
        return bool(self._labels_of(statement)) or self._is_weakener(statement)

    def _encode_chunk(
        self, statements: pl.Series, counts: dict[str, int]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        statements = statements.list.drop_nulls()
        read = statements.is_not_null().to_numpy()
        lengths = statements.list.len().fill_null(0).to_numpy().astype(np.int64)
        flat = statements.gather(np.flatnonzero(lengths)).explode()
        distinct = flat.unique(maintain_order=True)
        names = distinct.to_list() if lengths.any() else []
        numbers = np.zeros(0, np.uint32)
        if names:
            numbers = flat.cast(pl.Enum(distinct)).to_physical().to_numpy()
        for name, count in zip(names, np.bincount(numbers, minlength=len(names)), strict=False):
            counts[name] = counts.get(name, 0) + int(count)
        ends = np.concatenate(([0], np.cumsum(lengths)))
        return self.encoder(names).encode(numbers, ends, read)

    def encoder(self, names: Sequence[str]) -> "Encoder":
        """Return what turns statements, given as places in `names`, into packed labels."""
        weakens = np.array([self._is_weakener(name) for name in names], np.bool_)
        opens = np.zeros(len(names), np.bool_)
        if self.match == "substring":
            opens[:] = [self._opens_with_weakener(name) for name in names]
        left_open = np.zeros((len(names), self.num_labels), np.uint8)
        stops = np.zeros(len(names), np.bool_)
        if self.match == "words":
            # Here, because the package of the maps imports this module.
            from ecgfounder_train.labels.maps.wording import stops_reading

            for row, name in enumerate(names):
                left_open[row, sorted(self._words_of(name)[1])] = 1
                stops[row] = stops_reading(name)
        return Encoder(self, self._bits_of(names), pack(left_open), weakens, opens, stops)

    def resolve(
        self,
        read: npt.NDArray[np.bool_],
        firm: npt.NDArray[np.uint8],
        weak: npt.NDArray[np.uint8],
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return packed values and observed flags of labels stated firmly and weakened ones."""
        values = firm | weak if self.weakened == "positive" else firm
        observed = np.where(read[:, None], pack(np.ones(self.num_labels, np.uint8)), np.uint8(0))
        if self.weakened == "unobserved":
            observed &= ~(weak & ~firm)
        for mask in self._exclusive_groups:
            observed[~(values & mask).any(axis=1)] &= ~mask
        return values & observed, observed

    @cached_property
    def _exclusive_groups(self) -> list[npt.NDArray[np.uint8]]:
        names = {e.group for e in self.entries if e.observed_when == "group_positive"}
        return [
            pack(
                np.array(
                    [e.group == name and e.observed_when == "group_positive" for e in self.entries],
                    np.uint8,
                )
            )
            for name in sorted(names)
        ]

    def _bits_of(self, statements: Sequence[str]) -> npt.NDArray[np.uint8]:
        flags = np.zeros((len(statements), self.num_labels), np.uint8)
        for row, statement in enumerate(statements):
            flags[row, sorted(self._labels_of(statement))] = 1
        return pack(flags)

    def _labels_of(self, statement: str) -> set[int]:
        if self.match == "words":
            return self._words_of(statement)[0]
        if self.match == "code":
            found = set(self._code_table.get(_clean_code(statement), ()))
        else:
            text = self._text_of(statement)
            found = {i for i, label in enumerate(self._label_texts) if label in text}
        return self._closed(found)

    def _closed(self, found: set[int]) -> set[int]:
        if self.closure == "parents":
            for index in tuple(found):
                found |= self._ancestors[index]
        return found

    def _words_of(self, statement: str) -> tuple[set[int], set[int]]:
        """Return the labels that a sentence states, and those that it only leaves open."""
        # Here, because the package of the maps imports this module.
        from ecgfounder_train.labels.maps.wording import qualifies, read_wording

        text = self._text_of(statement)

        def found(phrase: str) -> set[int]:
            hits = self._any_label.finditer(_clean_text(phrase))
            return self._closed({self._label_texts.index(hit[0]) for hit in hits})

        wording = read_wording(text)
        firm = found(wording.firm)
        # A label may be a word of doubt itself (BORDERLINE ECG): then it is stated.
        firm |= {index for index in found(text) if qualifies(self._label_texts[index])}
        return firm, set().union(*map(found, wording.open)) - firm

    @cached_property
    def _any_label(self) -> re.Pattern[str]:
        # The longest first: NORMAL SINUS RHYTHM is not also SINUS RHYTHM, unless closure says so.
        longest = sorted(self._label_texts, key=len, reverse=True)
        return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest)) + r")(?!\w)")

    @cached_property
    def _code_table(self) -> dict[str, tuple[int, ...]]:
        table: dict[str, list[int]] = {}
        for index, entry in enumerate(self.entries):
            for code in entry.codes:
                table.setdefault(code, []).append(index)
        claims: dict[str, list[int]] = {}
        for index, entry in enumerate(self.entries):
            for code in entry.alternatives:
                claims.setdefault(code, []).append(index)
        for code, indices in claims.items():
            unclaimed = code not in table and len(indices) == 1
            if self.alternatives == "all" or (self.alternatives == "unclaimed" and unclaimed):
                table.setdefault(code, []).extend(indices)
        return {code: tuple(indices) for code, indices in table.items()}

    @cached_property
    def _own_texts(self) -> dict[str, str]:
        texts: dict[str, str] = {}
        for entry in self.entries:
            for code in entry.codes:
                texts.setdefault(code, entry.name)
        for entry in self.entries:
            for code in entry.alternatives:
                texts.setdefault(code, entry.name)
        return texts

    @cached_property
    def _label_texts(self) -> tuple[str, ...]:
        return tuple(_clean_text(name) for name in self.labels)

    @cached_property
    def _ancestors(self) -> tuple[set[int], ...]:
        position = {name: index for index, name in enumerate(self.labels)}
        ancestors: list[set[int]] = []
        for entry in self.entries:
            found: set[int] = set()
            ahead = [position[name] for name in entry.parents]
            while ahead:
                index = ahead.pop()
                if index not in found:
                    found.add(index)
                    ahead.extend(position[name] for name in self.entries[index].parents)
            ancestors.append(found)
        return tuple(ancestors)

    def _text_of(self, statement: str) -> str:
        code = _clean_code(statement)
        return _clean_text(self.texts.get(code) or self._own_texts.get(code) or statement)

    @cached_property
    def _weakener_texts(self) -> frozenset[str]:
        return frozenset(_clean_text(phrase) for phrase in self.weakeners)

    @cached_property
    def _weakener_codes(self) -> frozenset[str]:
        return frozenset(code for codes in self.weakeners.values() for code in codes)

    def _is_weakener(self, statement: str) -> bool:
        return (
            _clean_code(statement) in self._weakener_codes
            or self._text_of(statement) in self._weakener_texts
        )

    def _opens_with_weakener(self, statement: str) -> bool:
        text = self._text_of(statement)
        return any(text.startswith(phrase + " ") for phrase in self._weakener_texts)


@dataclass(frozen=True)
class Encoder:
    """Statements by number to packed labels; made by `Vocabulary.encoder`."""

    vocabulary: Vocabulary
    bits: npt.NDArray[np.uint8]
    left_open: npt.NDArray[np.uint8]
    """Labels that a statement by itself only leaves open."""
    weakens: npt.NDArray[np.bool_]
    opens_weakened: npt.NDArray[np.bool_]
    stops: npt.NDArray[np.bool_]
    """Statements that say that the rest was not analysed: it is unobserved, not negative."""

    def encode(
        self,
        numbers: npt.NDArray[np.unsignedinteger],
        ends: npt.NDArray[np.int64],
        read: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return packed values and observed flags.

        Args:
            numbers: The statements of all records, one after the other.
            ends: Where each record's begin, and at last where they end.
            read: Which records have an over-read; the others are unobserved.
        """
        width = (self.vocabulary.num_labels + 7) // 8
        firm = np.zeros((len(read), width), np.uint8)
        weak = np.zeros_like(firm)
        gather_bits(
            *(numbers, ends, self.bits, self.left_open, self.weakens, self.opens_weakened),
            *(firm, weak),
        )
        values, observed = self.vocabulary.resolve(read, firm, weak)
        if self.stops.any():
            before = np.concatenate(([0], np.cumsum(self.stops[numbers])))
            stopped = before[ends[1:]] > before[ends[:-1]]
            observed[stopped] &= values[stopped]
        return values, observed


def _clean_code(statement: str) -> str:
    # Tables that went through pandas hold single codes as floats: "299.0".
    code = statement.strip()
    head, dot, tail = code.partition(".")
    return head if dot and head.isdigit() and not tail.strip("0") else code


def _clean_text(text: str) -> str:
    return " ".join(text.upper().split())


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".csv") or "/" in text or "\\" in text:
        path = Path(name_or_path)
        if not path.is_file():
            raise UserError(
                f"No vocabulary file {path}. labels.name takes the path of a CSV with a column "
                f"'label', or one of: {', '.join(vocabulary_names())}."
            )
        return path
    if text not in vocabulary_names():
        raise UserError(
            f"No vocabulary {text!r}.{did_you_mean(text, vocabulary_names())} "
            "The path of your own CSV (ending in .csv) is taken too."
        )
    return DATA_FOLDER / f"{text}.csv"


_COLUMNS = ("label", "codes", "alternatives", "parents", "group", "observed_when", "role")


def _read(path: Path) -> tuple[tuple[Label, ...], dict[str, tuple[str, ...]]]:
    columns, rows = read_csv(path, "vocabulary")
    if "label" not in columns:
        raise UserError(
            f"{path} has no column 'label' (found: {', '.join(columns) or 'nothing'}). "
            f"A vocabulary's columns are: {', '.join(_COLUMNS)}; only 'label' is required."
        )
    for column in columns:
        hint = did_you_mean(column, _COLUMNS, limit=1)
        near = hint.startswith(" Did") and column.lower().rstrip("s") in hint.lower()
        if column not in _COLUMNS and near:
            raise UserError(f"{path}: column {column!r} is not read.{hint}")
    entries: list[Label] = []
    weakeners: dict[str, tuple[str, ...]] = {}
    for number, row in enumerate(rows, start=2):
        where = f"{path}, row {number}"
        if not row["label"]:
            raise UserError(f"{where}: the label is empty.")
        role = row.get("role") or "label"
        if role == "weakener":
            weakeners[row["label"]] = _split(row.get("codes", ""))
        elif role == "label":
            entries.append(_label(row, columns, where))
        else:
            raise UserError(f"{where}: role {role!r} is neither 'label' nor 'weakener'.")
    _check(entries, path)
    return tuple(entries), weakeners


def _label(row: dict[str, str], columns: tuple[str, ...], where: str) -> Label:
    observed_when = row.get("observed_when") or "statement"
    if observed_when not in ("statement", "group_positive"):
        raise UserError(
            f"{where}: observed_when {observed_when!r} is neither 'statement' nor 'group_positive'."
        )
    codes = _split(row.get("codes", ""))
    if "codes" not in columns:
        codes = (row["label"],)
    return Label(
        name=row["label"],
        codes=codes,
        alternatives=_split(row.get("alternatives", "")),
        parents=_split(row.get("parents", "")),
        group=row.get("group", ""),
        observed_when=observed_when,
        notes={key: value for key, value in row.items() if key not in _COLUMNS},
    )


def _split(cell: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in cell.split(SEPARATOR) if part.strip())


def _check(entries: list[Label], path: Path) -> None:
    names = [entry.name for entry in entries]
    if not names:
        raise UserError(f"{path} holds no label.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path} holds a label twice: {', '.join(twice)}. Names must differ.")
    for entry in entries:
        for parent in entry.parents:
            if parent not in names:
                raise UserError(
                    f"{path}: {entry.name!r} has the parent {parent!r}, which is not a label of it."
                    f"{did_you_mean(parent, names)}"
                )

"""A label map: read from its CSV, checked against the model, applied to statements or outputs."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.csv_files import read_csv
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.labels.maps.sites import check_sites, meant_sites, named_site
from ecgfounder_train.labels.maps.spelling import spelled
from ecgfounder_train.labels.maps.wording import qualifies, read_wording, stops_reading
from ecgfounder_train.labels.packing import unpack
from ecgfounder_train.labels.vocabulary import Vocabulary

FOLDER = Path(__file__).parent
COLUMNS = ("label", "implies", "published", "excludes", "leaves_open", "unobserved_at", "agreement",
           "justification")  # fmt: skip
FORMER_NAMES = {"implies": "ours", "leaves_open": "unobserved_if"}
"""Names of columns in maps written before `excludes` existed."""
AGREEMENTS = ("exact", "broader", "narrower", "proxy")
VARIANTS = ("ours", "published")
ANYTHING = ("*",)
"""In `leaves_open`: whatever is stated leaves the label open unless it implies or excludes it."""

_MIN_SHOWN, _NUM_SHOWN = 10, 20

Expression = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class MappedLabel:
    """One row of a map: the statements that imply a label, exclude it, or leave it open."""

    label: str
    implies: Expression
    excludes: Expression = ()
    leaves_open: Expression = ()
    unobserved_at: frozenset[str] = frozenset()
    agreement: str = ""
    justification: str = ""


@dataclass(frozen=True)
class StatementCoverage:
    """How often each statement was made: those that bear on an evaluated label, and the others."""

    matched: Mapping[str, int]
    unmatched: Mapping[str, int]

    @property
    def summary(self) -> str:
        """Return how many statements bear on an evaluated label, and the commonest that do not.

        A statement may be free text: those made in fewer than ten records are counted only.
        """
        used, unused = sum(self.matched.values()), sum(self.unmatched.values())
        different = len(self.matched) + len(self.unmatched)
        common = [(s, n) for s, n in self.unmatched.items() if n >= _MIN_SHOWN][:_NUM_SHOWN]
        named = ", ".join(f"{statement} ({count:,})" for statement, count in common)
        others = len(self.unmatched) - len(common)
        rest = f"{others:,} other{'s' if others != 1 else ''}" if others else ""
        return (
            f"{used:,} of {used + unused:,} statements ({len(self.matched):,} of {different:,} "
            "different ones) bear on an evaluated label"
            + (f"; not {' and '.join(filter(None, [named, rest]))}." if unused else ".")
        )


@dataclass(frozen=True)
class _Stated:
    """The terms of one label's row that a statement states, leaves open, or denies."""

    firm: frozenset[str] = frozenset()
    open: frozenset[str] = frozenset()
    denied: frozenset[str] = frozenset()

    def __or__(self, other: "_Stated") -> "_Stated":
        return _Stated(self.firm | other.firm, self.open | other.open, self.denied | other.denied)


def map_names() -> tuple[str, ...]:
    """Return the names of the maps of the package, `<vocabulary>.<data set>`."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.*.csv")))


@dataclass(frozen=True)
class LabelMap:
    """How a model's labels read in the statements of another data set.

    `entries` holds the labels that are evaluated, `excluded` the others with the reason.
    """

    name: str
    variant: str
    labels: tuple[str, ...]
    entries: tuple[MappedLabel, ...]
    excluded: dict[str, str]
    data_set: str = ""
    """Whose statements are read; names the list of sites that `unobserved_at` is checked with."""
    vocabulary: Vocabulary | None = None
    """Set where the model's own vocabulary reads the statements; it then decides, not the rows."""

    @classmethod
    def load(
        cls, data_set: str, vocabulary: str, labels: Sequence[str], variant: str = "ours"
    ) -> "LabelMap":
        """Return the map of a model to a data set.

        Args:
            data_set: Such as `ptbxl`.
            vocabulary: Name of the model's vocabulary. A map for a part of its labels does too.
            labels: The model's labels.
            variant: `ours`, `published`, or the path of your own CSV.

        Raises:
            UserError: There is no such map, it names a label the model has not, or has no rows.
        """
        if variant not in VARIANTS:
            if not variant.endswith(".csv"):
                raise UserError(
                    f"map={variant!r} is unknown.{did_you_mean(variant, VARIANTS)} The path of "
                    "your own CSV is taken too."
                )
            return cls.read(Path(variant), labels, "ours", data_set)
        path = FOLDER / f"{vocabulary}.{data_set}.csv"
        if path.is_file():
            return cls.read(path, labels, variant, data_set)
        for other in sorted(FOLDER.glob(f"*.{data_set}.csv")):
            # A vocabulary that extends another one takes over its map.
            if {row["label"] for row in _rows(other)} <= set(labels):
                return cls.read(other, labels, variant, data_set)
        raise UserError(
            f"There is no label map from the vocabulary {vocabulary} to {data_set}. There are: "
            f"{', '.join(map_names())}. Give the path of your own with map=FILE.csv (columns "
            f"{', '.join(COLUMNS)}; only label and implies are required)."
        )

    @classmethod
    def read(
        cls, path: Path, labels: Sequence[str], variant: str = "ours", data_set: str = ""
    ) -> "LabelMap":
        """Return the map in a CSV file; labels of the model without a row are not evaluated.

        Raises:
            UserError: As `load`, or a row that cannot be read.
        """
        entries, excluded = [], dict.fromkeys(labels, "not in the map")
        sets = _sets(path.stem)
        seen: set[str] = set()
        for number, row in enumerate(_rows(path), start=2):
            label, where = row["label"], f"{path}, row {number}"
            if label not in labels:
                raise UserError(
                    f"{where}: the model has no label {label!r}.{did_you_mean(label, labels)}"
                )
            if label in seen:
                raise UserError(f"{where}: the label {label!r} has a row already.")
            seen.add(label)
            entry = _entry(row, variant, sets, data_set, where)
            if entry.implies:
                del excluded[label]
                entries.append(entry)
            else:
                excluded[label] = entry.justification or "the map leaves it out"
        if not entries:
            raise UserError(
                f"{path} maps no label in its column {'implies' if variant == 'ours' else variant}"
                + ("; no published map to this data set is known. Use map=ours."
                   if variant == "published" else ".")
            )  # fmt: skip
        place = {label: number for number, label in enumerate(labels)}
        entries.sort(key=lambda entry: place[entry.label])
        return cls(path.stem, variant, tuple(labels), tuple(entries), excluded, data_set)

    @classmethod
    def of_vocabulary(cls, vocabulary: Vocabulary, labels: Sequence[str]) -> "LabelMap":
        """Return the map of a model whose own vocabulary reads the data set's statements."""
        entries = tuple(
            MappedLabel(
                entry.name, tuple((code,) for code in entry.codes), agreement="exact",
                justification="the model's own label",
            )
            for entry in vocabulary.entries
            if entry.name in labels
        )  # fmt: skip
        name = vocabulary.name
        return cls(name, "own", tuple(labels), entries, {}, vocabulary=vocabulary)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The labels that are evaluated, in the model's order."""
        return tuple(entry.label for entry in self.entries)

    @property
    def fingerprint(self) -> str:
        """Changes with any rule of the map."""
        if self.vocabulary is not None:
            return self.vocabulary.fingerprint
        return fingerprint(
            [
                [e.label, e.implies, e.excludes, e.leaves_open, sorted(e.unobserved_at)]
                for e in self.entries
            ]
        )

    @property
    def notes(self) -> dict[str, str]:
        """Agreement and justification of each evaluated label."""
        return {
            entry.label: f"{entry.agreement}: {entry.justification}"
            if entry.agreement
            else entry.justification
            for entry in self.entries
        }

    @cached_property
    def _terms(self) -> tuple[tuple[tuple[str, int], ...], ...]:
        """Return of each row its terms, the longest first, and in which of its columns each is."""
        rows = []
        for entry in self.entries:
            columns: dict[str, int] = {}
            for number, expression in enumerate((entry.implies, entry.excludes, entry.leaves_open)):
                for term in _texts(expression) - {"*"}:
                    columns.setdefault(term, number)
            rows.append(tuple(sorted(columns.items(), key=lambda item: (-_length(item[0]), item))))
        return tuple(rows)

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        return {term: _pattern(term) for terms in self._terms for term, _ in terms}

    @cached_property
    def _needs_sites(self) -> bool:
        return any(entry.unobserved_at for entry in self.entries)

    def named_sites(
        self, sites: Sequence[str | None], record_paths: Iterable[str]
    ) -> list[str | None]:
        """Return each record's site; one that is no site's name is looked for in the path."""
        if not self._needs_sites:
            return list(sites)
        return [
            named_site(self.data_set, site, path)
            for site, path in zip(sites, record_paths, strict=True)
        ]

    def targets(
        self, statements: Sequence[Sequence[str] | None], sites: Sequence[str | None] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return targets and observed of the evaluated labels.

        What a text says after "possible", "consider", "cannot rule out" or the like makes nothing
        positive: the answer stays open. What it denies ("no ...") is not stated. Where a text says
        that the reading stopped, only what is stated is known.

        Args:
            statements: Per record; None: without an over-read, so nothing is observed.
            sites: Where each was recorded.

        Shape: two uint8 arrays (num_records, len(evaluated)).

        Raises:
            UserError: Labels of the map are unobserved at some sites, and a record's site is not
                one of the data set's.
        """
        if self.vocabulary is not None:
            return self._targets_of_vocabulary(self.vocabulary, statements)
        targets = np.zeros((len(statements), len(self.entries)), np.uint8)
        observed = np.zeros_like(targets)
        read: dict[str, dict[int, _Stated]] = {}
        answers: dict[tuple[frozenset[str], str], tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
        for row, cell in enumerate(statements):
            if cell is None:
                continue
            site = (sites[row] if sites is not None else None) or ""
            key = frozenset(cell), site
            if key not in answers:
                for statement in key[0] - read.keys():
                    read[statement] = self._read(statement)
                answers[key] = self._answer(key[0], site, read)
            targets[row], observed[row] = answers[key]
        return targets, observed

    def _targets_of_vocabulary(
        self, vocabulary: Vocabulary, statements: Sequence[Sequence[str] | None]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        cells = pl.Series(
            [None if cell is None else list(cell) for cell in statements],
            dtype=pl.List(pl.String),
        )
        encoded = vocabulary.encode_many(cells)
        columns = [vocabulary.labels.index(label) for label in self.evaluated]
        values, known = (
            unpack(packed, vocabulary.num_labels)[:, columns]
            for packed in (encoded.values, encoded.observed)
        )
        return values, known

    def _answer(
        self, cell: frozenset[str], site: str, read: Mapping[str, Mapping[int, _Stated]]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return targets and observed of one record."""
        targets = np.zeros(len(self.entries), np.uint8)
        observed = np.zeros_like(targets)
        places = meant_sites(self.data_set, site) if self._needs_sites else frozenset()
        stopped = any(stops_reading(statement) for statement in cell)
        for column, entry in enumerate(self.entries):
            stated = _Stated()
            for statement in cell:
                stated |= read[statement].get(column, _Stated())
            if places & entry.unobserved_at:
                continue
            if _holds(entry.implies, stated.firm):
                targets[column] = observed[column] = 1
                continue
            said = stated.firm | stated.open
            in_doubt = _holds(entry.leaves_open, said) or _holds(entry.implies, said)
            excluded = _holds(entry.excludes, stated.firm) or _holds(entry.implies, stated.denied)
            by_default_open = ANYTHING in entry.leaves_open
            if not stopped and not in_doubt and (excluded or not by_default_open):
                observed[column] = 1
        return targets, observed

    def _read(self, statement: str) -> dict[int, _Stated]:
        """Return by row the terms that this statement states, leaves open, or denies.

        What a term covers is not also a shorter one of another column: in "incomplete right bundle
        branch block", which excludes the complete one, nothing is left that implies it.
        """
        wording = read_wording(statement)
        whole, firm = spelled(wording.text), spelled(wording.firm)
        open_, denied = tuple(map(spelled, wording.open)), tuple(map(spelled, wording.denied))
        # Most statements have nothing to do with most rows: found here once, refined below.
        present = {
            term
            for term, pattern in self._patterns.items()
            if any(map(pattern.search, (whole, firm, *open_, *denied)))
        }

        def states(term: str, over: Iterable[re.Pattern[str]], phrases: Iterable[str]) -> bool:
            return any(self._patterns[term].search(_uncovered(text, over)) for text in phrases)

        found = {}
        for row, terms in enumerate(self._terms):
            stated = _Stated()
            longer: list[tuple[int, str]] = []
            for term, column in terms:
                if term not in present:
                    continue
                over = [
                    self._patterns[other]
                    for another, other in longer
                    if another != column and _length(other) > _length(term)
                ]
                here = frozenset({term})
                # A map that spells the qualifying word ("Borderline ECG*") means the whole text.
                if states(term, over, [whole if qualifies(term) else firm]):
                    stated |= _Stated(firm=here)
                elif states(term, over, open_):
                    stated |= _Stated(open=here)
                elif states(term, over, denied):
                    stated |= _Stated(denied=here)
                else:
                    continue
                longer.append((column, term))
            if stated != _Stated():
                found[row] = stated
        return found

    def coverage(self, statements: Sequence[Sequence[str] | None]) -> StatementCoverage:
        """Return which statements bear on an evaluated label and which do not, with counts."""
        counts = Counter(statement for cell in statements for statement in cell or ())
        matched: dict[str, int] = {}
        unmatched: dict[str, int] = {}
        for statement, count in counts.most_common():
            if self.vocabulary is not None:
                bears = self.vocabulary.knows(statement)
            else:
                bears = bool(self._read(statement)) or stops_reading(statement)
            (matched if bears else unmatched)[statement] = count
        return StatementCoverage(matched, unmatched)

    def scores(
        self, logits: NDArray[np.floating], vocabulary: Vocabulary
    ) -> tuple[NDArray[np.float32], list[str]]:
        """Return the logits of a model of the data set's own labels as logits of the mapped ones.

        Any-of takes the largest logit, all-of the smallest. For comparing with a network trained
        on the data set itself.

        Returns:
            Logits (num_records, len(evaluated)), NaN where the model has no such output, and the
            names of those labels.
        """
        result = np.full((len(logits), len(self.entries)), np.nan, np.float32)
        place = {
            code.casefold(): number
            for number, entry in enumerate(vocabulary.entries)
            for code in entry.codes
        }
        absent = []
        for column, entry in enumerate(self.entries):
            parts = [
                np.min([logits[:, place[s.casefold()]] for s in part], axis=0)
                for part in entry.implies
                if all(s.casefold() in place for s in part)
            ]
            if parts:
                result[:, column] = np.max(parts, axis=0)
            else:
                absent.append(entry.label)
        return result, absent


def _rows(path: Path) -> list[dict[str, str]]:
    columns, rows = read_csv(path, "label map")
    for column, former in FORMER_NAMES.items():
        if column not in columns and former in columns:
            columns = (*columns, column)
            for row in rows:
                row[column] = row[former]
    for column in ("label", "implies"):
        if column not in columns:
            raise UserError(
                f"{path} has no column {column!r} (found: {', '.join(columns) or 'nothing'}). A "
                f"label map has the columns {', '.join(COLUMNS)}."
            )
    return rows


def _entry(
    row: Mapping[str, str], variant: str, sets: Mapping[str, str], data_set: str, where: str
) -> MappedLabel:
    agreement, why = row.get("agreement", ""), row.get("justification", "")
    if agreement and agreement not in AGREEMENTS:
        raise UserError(f"{where}: agreement {agreement!r} is none of {AGREEMENTS}.")
    if variant == "published":
        # The published evaluation has no unobserved answers.
        same = row["implies"] == row.get("published", "")
        why = "as published" if same or not row.get("published") else (
            f"as published; ours differs: {why}"
        )  # fmt: skip
        implies = _expression(row.get("published", ""), {}, where)
        return MappedLabel(row["label"], implies, justification=why if implies else "")
    implies, excludes, leaves_open = (
        _expression(row.get(column, ""), sets, where)
        for column in ("implies", "excludes", "leaves_open")
    )
    names = [name for name in row.get("unobserved_at", "").split("|") if name]
    absent = check_sites(data_set, names, where)
    return MappedLabel(row["label"], implies, excludes, leaves_open, absent, agreement, why)


def _expression(text: str, sets: Mapping[str, str], where: str) -> Expression:
    if not text:
        return ()
    parts: list[tuple[str, ...]] = []
    for part in text.split("|"):
        if part.strip().startswith("@"):
            if part.strip() not in sets:
                raise UserError(
                    f"{where}: there is no set {part.strip()!r}.{did_you_mean(part, sets)}"
                )
            others = {name: text for name, text in sets.items() if name != part.strip()}
            parts += _expression(sets[part.strip()], others, where)
        else:
            parts.append(tuple(s.strip() for s in part.split("&")))
    if any(not statement for part in parts for statement in part):
        raise UserError(f"{where}: cannot read {text!r}; expected statements joined by | and &.")
    return tuple(parts)


def _texts(expression: Expression) -> frozenset[str]:
    return frozenset(text for part in expression for text in part)


def _holds(expression: Expression, statements: frozenset[str]) -> bool:
    return any(all(s in statements for s in part) for part in expression)


def _pattern(text: str) -> re.Pattern[str]:
    """Return the expression of a term: `*` is any text, `%` any letters of a word."""
    pieces = [
        r"\w*".join(map(re.escape, piece.split("%"))) for piece in map(spelled, text.split("*"))
    ]
    starts = "" if text.startswith("*") else r"^"
    ends = "" if text.endswith("*") else r"$"
    return re.compile(starts + r".*?".join(filter(None, pieces)) + ends)


def _sets(name: str) -> dict[str, str]:
    """Return the statements that rows of a map of the package name together, by `@name`."""
    rows = read_csv(FOLDER / "sets.csv", "list of sets")[1]
    return {row["set"]: row["statements"] for row in rows if row["map"] == name}


def _length(term: str) -> int:
    return len(spelled(term.replace("*", " ").replace("%", "")))


def _uncovered(text: str, covering: Iterable[re.Pattern[str]]) -> str:
    for pattern in covering:
        text = pattern.sub(" | ", text)
    return text


def label_families(labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return families of labels that are confused with one another, as far as present."""
    families: dict[str, list[str]] = {}
    with open(FOLDER / "families.csv", newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            if row["label"] in labels:
                families.setdefault(row["family"], []).append(row["label"])
    return {name: tuple(found) for name, found in families.items() if len(found) > 1}

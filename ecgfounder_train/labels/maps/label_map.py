"""A label map: read from its CSV, checked against the model, applied to statements or outputs."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.csv_files import read_csv
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.labels.maps.wording import qualifies, read_wording, stops_reading
from ecgfounder_train.labels.packing import unpack
from ecgfounder_train.labels.vocabulary import Vocabulary

FOLDER = Path(__file__).parent
COLUMNS = ("label", "ours", "published", "unobserved_if", "unobserved_at", "agreement",
           "justification")  # fmt: skip
AGREEMENTS = ("exact", "broader", "narrower", "proxy")
VARIANTS = ("ours", "published")

Expression = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class MappedLabel:
    """One row of a map: what makes the label positive, and what leaves it open."""

    label: str
    positive: Expression
    unobserved_if: Expression
    unobserved_at: frozenset[str]
    agreement: str
    justification: str


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
            return cls.read(Path(variant), labels, "ours")
        path = FOLDER / f"{vocabulary}.{data_set}.csv"
        if path.is_file():
            return cls.read(path, labels, variant)
        for other in sorted(FOLDER.glob(f"*.{data_set}.csv")):
            # A vocabulary that extends another one takes over its map.
            if {row["label"] for row in _rows(other)} <= set(labels):
                return cls.read(other, labels, variant)
        raise UserError(
            f"There is no label map from the vocabulary {vocabulary} to {data_set}. There are: "
            f"{', '.join(map_names())}. Give the path of your own with map=FILE.csv (columns "
            f"{', '.join(COLUMNS)}; only label and ours are required)."
        )

    @classmethod
    def read(cls, path: Path, labels: Sequence[str], variant: str = "ours") -> "LabelMap":
        """Return the map in a CSV file; labels of the model without a row are not evaluated.

        Raises:
            UserError: As `load`, or a row that cannot be read.
        """
        entries, excluded = [], dict.fromkeys(labels, "not in the map")
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
            why = row.get("justification", "")
            agreement = row.get("agreement", "")
            if agreement and agreement not in AGREEMENTS:
                raise UserError(f"{where}: agreement {agreement!r} is none of {AGREEMENTS}.")
            positive = _expression(row.get(variant, ""), where)
            ours = variant == "ours"
            if not positive:
                excluded[label] = why if ours and why else "the map leaves it out"
                continue
            del excluded[label]
            if not ours:
                differs = row.get("ours", "") != row[variant]
                why = f"as published; ours differs: {why}" if differs else "as published"
            entries.append(
                MappedLabel(
                    label,
                    positive,
                    # The published evaluation knew no unobserved answers.
                    _expression(row.get("unobserved_if", ""), where) if ours else (),
                    frozenset(_site(s) for s in row.get("unobserved_at", "").split("|") if s)
                    if ours
                    else frozenset(),
                    agreement if ours else "",
                    why,
                )
            )
        if not entries:
            raise UserError(
                f"{path} maps no label in its column {variant!r}"
                + ("; no published map to this data set is known. Use map=ours."
                   if variant == "published" else ".")
            )  # fmt: skip
        place = {label: number for number, label in enumerate(labels)}
        entries.sort(key=lambda entry: place[entry.label])
        return cls(path.stem, variant, tuple(labels), tuple(entries), excluded)

    @classmethod
    def of_vocabulary(cls, vocabulary: Vocabulary, labels: Sequence[str]) -> "LabelMap":
        """Return the map of a model whose own vocabulary reads the data set's statements."""
        entries = tuple(
            MappedLabel(
                entry.name, tuple((code,) for code in entry.codes), (), frozenset(), "exact",
                "the model's own label",
            )
            for entry in vocabulary.entries
            if entry.name in labels
        )  # fmt: skip
        return cls(vocabulary.name, "own", tuple(labels), entries, {}, vocabulary)

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
            [[e.label, e.positive, e.unobserved_if, sorted(e.unobserved_at)] for e in self.entries]
        )

    @property
    def notes(self) -> dict[str, str]:
        """What to know of each evaluated label."""
        return {
            entry.label: f"{entry.agreement}: {entry.justification}"
            if entry.agreement
            else entry.justification
            for entry in self.entries
        }

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        every = {text for pair in self._terms for terms in pair for text in terms}
        return {text: _pattern(text) for text in every}

    @cached_property
    def _terms(self) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
        return tuple(
            (_texts(entry.positive), _texts(entry.unobserved_if)) for entry in self.entries
        )

    def targets(
        self, statements: Sequence[Sequence[str] | None], sites: Sequence[str | None] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return targets and observed of the evaluated labels.

        What a text says after "possible", "consider", "cannot rule out" or the like makes nothing
        positive: the answer stays open. What it denies ("no ...") is not stated. Where a text says
        that the reading stopped, only what is stated is known.

        Args:
            statements: Per record; None = nobody read it, so nothing is observed.
            sites: Where each was recorded.

        Shape: two uint8 arrays (num_records, len(evaluated)).
        """
        if self.vocabulary is not None:
            cells = pl.Series(
                [None if cell is None else list(cell) for cell in statements],
                dtype=pl.List(pl.String),
            )
            encoded = self.vocabulary.encode_many(cells)
            columns = [self.vocabulary.labels.index(label) for label in self.evaluated]
            values, known = (
                unpack(packed, self.vocabulary.num_labels)[:, columns]
                for packed in (encoded.values, encoded.observed)
            )
            return values, known
        targets = np.zeros((len(statements), len(self.entries)), np.uint8)
        observed = np.zeros_like(targets)
        cache: dict[str, dict[int, tuple[frozenset[str], frozenset[str]]]] = {}
        nothing: frozenset[str] = frozenset()
        for row, cell in enumerate(statements):
            if cell is None:
                continue
            said: dict[int, tuple[frozenset[str], frozenset[str]]] = {}
            for statement in cell:
                if statement not in cache:
                    cache[statement] = self._match(statement)
                for column, (firm, open_) in cache[statement].items():
                    before = said.get(column, (nothing, nothing))
                    said[column] = before[0] | firm, before[1] | open_
            site = _site(sites[row] or "") if sites is not None else ""
            stopped = any(stops_reading(statement) for statement in cell)
            for column, entry in enumerate(self.entries):
                firm, open_ = said.get(column, (nothing, nothing))
                if _holds(entry.positive, firm):
                    targets[row, column] = observed[row, column] = 1
                elif not (
                    stopped
                    or site in entry.unobserved_at
                    or _holds(entry.unobserved_if, firm | open_)
                    or _holds(entry.positive, firm | open_)
                ):
                    observed[row, column] = 1
        return targets, observed

    def _match(self, statement: str) -> dict[int, tuple[frozenset[str], frozenset[str]]]:
        """Return what of each label's row this statement says firmly, and what it leaves open."""
        wording = read_wording(statement)
        firm, open_ = set(), set()
        for name, pattern in self._patterns.items():
            # A map that spells the qualifying word ("Borderline ECG*") means the whole text.
            if pattern.match(wording.text if qualifies(name) else wording.firm):
                firm.add(name)
            elif any(pattern.match(text) for text in wording.open):
                open_.add(name)
        found = {}
        for column, (positive, unobserved) in enumerate(self._terms):
            sure, unsure = positive & firm, (positive | unobserved) & open_
            doubts = unobserved & firm
            if doubts - positive:
                # One text fits both ("Atrial fibrillation or flutter"): it does not decide.
                sure, unsure = frozenset(), unsure | sure
            if sure or unsure or doubts:
                found[column] = sure | doubts, frozenset(unsure)
        return found

    def scores(
        self, logits: NDArray[np.floating], vocabulary: Vocabulary
    ) -> tuple[NDArray[np.float32], list[str]]:
        """Return the logits of a model that speaks the data set's own labels, in ours.

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
                for part in entry.positive
                if all(s.casefold() in place for s in part)
            ]
            if parts:
                result[:, column] = np.max(parts, axis=0)
            else:
                absent.append(entry.label)
        return result, absent


def _rows(path: Path) -> list[dict[str, str]]:
    columns, rows = read_csv(path, "label map")
    for column in ("label", "ours"):
        if column not in columns:
            raise UserError(
                f"{path} has no column {column!r} (found: {', '.join(columns) or 'nothing'}). A "
                f"label map has the columns {', '.join(COLUMNS)}."
            )
    return rows


def _expression(text: str, where: str) -> Expression:
    if not text:
        return ()
    parts = tuple(tuple(s.strip() for s in part.split("&")) for part in text.split("|"))
    if any(not statement for part in parts for statement in part):
        raise UserError(f"{where}: cannot read {text!r}; expected statements joined by | and &.")
    return parts


def _texts(expression: Expression) -> frozenset[str]:
    return frozenset(text for part in expression for text in part)


def _holds(expression: Expression, statements: frozenset[str]) -> bool:
    return any(all(s in statements for s in part) for part in expression)


def _pattern(text: str) -> re.Pattern[str]:
    # Brackets are characters of statements here ("PRC(S)", "[...]"), only * has a meaning.
    escaped = text.replace("[", "[[]").replace("?", "[?]")
    return re.compile(translate(escaped), re.IGNORECASE)


def _site(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def label_families(labels: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return families of labels that readers and models take for one another, as far as present."""
    families: dict[str, list[str]] = {}
    with open(FOLDER / "families.csv", newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            if row["label"] in labels:
                families.setdefault(row["family"], []).append(row["label"])
    return {name: tuple(found) for name, found in families.items() if len(found) > 1}

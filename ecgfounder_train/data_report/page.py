"""The page that may be shared: aggregated numbers only."""

import numpy as np

from ecgfounder_train.catalog.facts import AGE_BANDS, CatalogFacts
from ecgfounder_train.core.errors import RejectReason
from ecgfounder_train.core.splits import SPLITS
from ecgfounder_train.data_report.counts import (
    GONE,
    SHOWN,
    UNKNOWN,
    RecordCounts,
    agreements,
    label_systems,
    record_system,
    shares_together,
)
from ecgfounder_train.data_report.disclosure import CountSystem, Cover, Name
from ecgfounder_train.data_report.published import PUBLISHED_PREVALENCES
from ecgfounder_train.data_report.reasons import EXPLANATIONS
from ecgfounder_train.figures import Cell, Column, HtmlPage, Undefined, prevalence_figure
from ecgfounder_train.figures.data import PrevalencePoint, published_figure, together_figure
from ecgfounder_train.figures.html import Withheld
from ecgfounder_train.shards import Manifest

NUM_TOGETHER = 24
_HEADS = {
    "site": ("Site", "site"),
    "year": ("Directory year", "year"),
    "age_band": ("Age", "age in years"),
    "sex": ("Sex", "sex"),
    "fs": ("Sampling rate", "Hz"),
}
_NOTES = {
    "year": "The year of the folder a record lies in; dates of a recording may be shifted and are "
    "not used.",
    "age_band": f"Ages above 89 are {AGE_BANDS[-1]}.",
    "fs": "As recorded. It stands in the headers, which nobody reads for a record without labels.",
}


class ReportPage:
    """The data report of one folder of shards.

    Args:
        manifest: Of the shards.
        facts: Of the catalog the shards were made from.
        records: Where every record went.
        min_cell: Counts of 1 to this less 1 are not shown.
    """

    def __init__(
        self, manifest: Manifest, facts: CatalogFacts, records: RecordCounts, min_cell: int
    ) -> None:
        self.manifest, self.facts, self.records = manifest, facts, records
        self.min_cell = min_cell
        self.system = record_system(records, min_cell)
        self.of_labels = label_systems(facts, facts.label_source, min_cell)
        # Hidden counts last and by name: a place in the order would tell what they are.
        self.by_frequency = sorted(
            range(len(facts.labels)),
            key=lambda label: (-self._shown_positives(label), facts.labels[label]),
        )

    def _shown_positives(self, label: int) -> int:
        system, name = self.of_labels[label], ("all", "positive")
        return system.values[name] if system.is_open(name) else -1

    def build(self) -> HtmlPage:
        """Return the page."""
        manifest = self.manifest
        page = HtmlPage(
            f"Data report: {manifest.source}",
            f"{_number(len(manifest.labels), 'label')}, {_number(len(manifest.leads), 'lead')}, "
            f"{manifest.num_samples:,} samples at {manifest.fs:g} Hz. Counts only: no recording, "
            "patient, date or path.",
        )
        self._overview(page)
        self._dimensions(page)
        self._prevalence(page)
        self._published(page)
        self._readings(page)
        self._together(page)
        self._rejected(page)
        self._quirks(page)
        self._provenance(page)
        return page

    def _overview(self, page: HtmlPage) -> None:
        system, patients = self.system, self._patients()
        page.cards(
            [
                (_text(system, "found"), "records found"),
                (_text(system, "written"), "written to shards"),
                (_text(system, "unlabelled"), "without an observed label"),
                (_text(system, "rejected"), "rejected, with a reason"),
                (f"{self.records.windows:,}" if system.is_open("written") else "hidden", "windows"),
                (_text(patients, "all"), "patients with a label"),
            ]
        )
        page.paragraph(
            f"{_text(system, 'found')} found = {_text(system, 'written')} written + "
            f"{_text(system, 'unlabelled')} unlabelled + {_text(system, 'rejected')} rejected. A "
            "record that nobody read is unlabelled, not negative."
        )
        columns = [Column("part"), Column("records", ","), Column("patients", ",")]
        page.table(
            columns,
            [[part, _cell(system, part), _cell(patients, part)] for part in SPLITS],
            "Written records. Patients as the tables list them.",
            totals=["all parts", _cell(system, "written"), _cell(patients, "all")],
        )
        if self.min_cell:
            page.paragraph(
                f"Counts of 1 to {self.min_cell - 1} are shown as <{self.min_cell}; where a sum "
                "would give one away, others beside it are hidden. Rates that follow from a hidden "
                "count are hidden too.",
                hint=True,
            )

    def _patients(self) -> CountSystem:
        system = CountSystem(self.min_cell)
        splits = self.facts.summary["splits"]
        for part in SPLITS:
            system.add(part, splits.get(part, {"patients": 0})["patients"])
        system.add("all", sum(system.values.values()))
        system.add_sum("all", SPLITS)
        system.protect()
        return system

    def _dimensions(self, page: HtmlPage) -> None:
        for dimension, rows in self.records.dimensions.items():
            title, head = _HEADS[dimension]
            page.section(title)
            if len(rows) < 2:
                page.paragraph(_same_for_all(dimension, next(iter(rows), UNKNOWN)))
                continue
            columns = [Column(head), *(Column(column, ",") for column in SHOWN)]
            if not any(
                self.system.is_open((dimension, value, column))
                for value in rows
                for column in SHOWN
            ):
                page.paragraph("Every count here is small, or would give a small one away.")
                continue
            cells: list[list[Cell]] = [
                [value, *(_cell(self.system, (dimension, value, column)) for column in SHOWN)]
                for value in sorted(rows, key=lambda value: _order(dimension, value))
            ]
            totals = ["all", *(_cell(self.system, column) for column in SHOWN)]
            page.table(columns, cells, _NOTES.get(dimension, ""), totals=totals)

    def _prevalence(self, page: HtmlPage) -> None:
        page.section("Prevalence")
        labels = self.facts.labels
        systems = self.of_labels
        later = self.records.totals["rejected"] - sum(self.facts.summary["rejected"].values())
        page.paragraph(
            f"Labels as {_reader(self.facts.label_source)} says them, among the records that the "
            "tables do not reject"
            + ("; the few whose signal is rejected later are still in here." if later > 0 else ".")
        )
        open_ones = [
            label
            for label in self.by_frequency
            if all(systems[label].is_open(("all", kind)) for kind in ("positive", "observed"))
        ]
        drawn = [label for label in open_ones if systems[label].values["all", "positive"]]
        if drawn:
            never, hidden = len(open_ones) - len(drawn), len(labels) - len(open_ones)
            page.figure(
                prevalence_figure(
                    [systems[label].values["all", "positive"] for label in drawn],
                    [systems[label].values["all", "observed"] for label in drawn],
                    [labels[label] for label in drawn],
                ),
                "Share of positive records among the observed ones, all parts together."
                + (f" Left out: {_number(hidden, 'label')} with small counts." if hidden else "")
                + (f" {_number(never, 'label')} without any positive record." if never else ""),
            )
        columns = [Column("label")]
        for part in (*SPLITS, "all"):
            columns += [Column(f"{part} positive", ","), Column(f"{part} %", ".2f")]
        columns.append(Column("observed", ",", "records where the label is known, all parts"))
        rows: list[list[Cell]] = []
        without: list[list[Cell]] = []
        for label in self.by_frequency:
            system = systems[label]
            observed = _cell(system, ("all", "observed"))
            if self._shown_positives(label) == 0:
                without.append([labels[label], observed])
                continue
            row: list[Cell] = [labels[label]]
            for part in (*SPLITS, "all"):
                row += [_cell(system, (part, "positive")), _percent(system, part)]
            rows.append([*row, observed])
        if rows:
            page.table(columns, rows, filterable=len(rows) > 20)
        if without:
            page.details(f"{_number(len(without), 'label')} without any positive record")
            page.table([Column("label"), columns[-1]], without)
            page.end_details()

    def _published(self, page: HtmlPage) -> None:
        known = {label: number for number, label in enumerate(self.facts.labels)}
        systems = {
            reading: label_systems(self.facts, reading, self.min_cell)
            for reading in self.facts.prevalence
        }
        closure = self.manifest.vocabulary.get("options", {}).get("closure") == "parents"
        points, rows = [], []
        for published in PUBLISHED_PREVALENCES:
            reading = published.reading if published.reading in systems else self.facts.label_source
            if not all(label in known for label in published.labels):
                continue
            # With closure the first label takes in the others; else they exclude each other.
            used = published.labels[:1] if closure else published.labels
            chosen = [systems[reading][known[label]] for label in used]
            name = published.labels[0]
            row: list[Cell] = [
                " or ".join(used),
                published.scope + (" (sample)" if published.is_sample else ""),
                published.reading,
                100 * published.share,
            ]
            shown = all(
                system.is_open(("all", kind))
                for system in chosen
                for kind in ("positive", "observed")
            )
            observed = chosen[0].values["all", "observed"]
            found = sum(system.values["all", "positive"] for system in chosen)
            if not shown:
                row += [reading, Withheld("hidden"), None]
            elif not observed:
                row += [reading, Undefined("nothing observed"), None]
            else:
                share = found / observed
                row += [reading, 100 * share, share / published.share]
                if found:
                    series = f"{published.scope} {published.reading}"
                    points.append(
                        PrevalencePoint(name, series, published.share, share, published.is_sample)
                    )
            rows.append(row)
        if not rows:
            return
        page.section("Beside what is published")
        page.paragraph(
            "Prevalences printed by public programs that read HEEDB 5.0, beside the same label and "
            "reading here, all sites together. A label far off the line is a mistake in reading "
            "codes, or another population."
        )
        if points:
            page.figure(
                published_figure(points),
                "Dotted: equal. Grey: within a factor of two. Hollow: published for the first ECGs "
                "of pairs repeated within five minutes, which are not all recordings.",
            )
        columns = [
            Column("label"),
            Column("published for"),
            Column("reading there"),
            Column("%", ".2f"),
            Column("reading here"),
            Column("% here", ".2f"),
            Column("ratio", ".2f"),
        ]
        page.table(columns, rows)

    def _readings(self, page: HtmlPage) -> None:
        facts = self.facts
        if not facts.agreement:
            return
        page.section("Who read it")
        page.paragraph(
            "The same recordings, read by several. Cohen's kappa is 1 where two readings always "
            "agree and 0 where they agree as often as by chance. A label is left out where one of "
            "the four counts, or what follows from them, is small."
        )
        readings = list(facts.prevalence)
        systems = {name: label_systems(facts, name, self.min_cell) for name in readings}
        rows = []
        for label in self.by_frequency:
            percents = [_percent(systems[name][label], "all") for name in readings]
            if any(isinstance(value, float) and value > 0 for value in percents):
                rows.append([facts.labels[label], *percents])
        columns = [Column("label"), *(Column(f"{name} %", ".2f") for name in readings)]
        page.table(columns, rows, "Prevalence by reading, all parts.", filterable=len(rows) > 20)
        for pair in facts.agreement:
            first, second = pair.split("|")
            rows = []
            for label, found in enumerate(agreements(facts, pair, self.min_cell)):
                if found is not None and found.both + found.first_only + found.second_only:
                    kappa: Cell = found.kappa
                    if found.kappa is None:
                        kappa = Undefined("one answer only")
                    counts = (found.both, found.first_only, found.second_only)
                    rows.append([facts.labels[label], *counts, kappa])
            if rows:
                rows.sort(key=lambda row: (-int(row[1]), row[0]))  # type: ignore[arg-type]
                page.details(f"{first} and {second}: {len(rows)} labels")
                columns = [
                    Column("label"),
                    Column("both", ","),
                    Column(f"only {first}", ","),
                    Column(f"only {second}", ","),
                    Column("kappa", ".3f"),
                ]
                page.table(columns, rows, "Records that both read.", filterable=len(rows) > 20)
                page.end_details()

    def _together(self, page: HtmlPage) -> None:
        counts = np.diag(np.array(self.facts.together, np.int64))
        frequent = [
            label
            for label in self.by_frequency
            if self._shown_positives(label) > 0 and counts[label] >= max(self.min_cell, 1)
        ][:NUM_TOGETHER]
        if len(frequent) < 2:
            return
        page.section("Which labels come together")
        shares = shares_together(self.facts, np.array(frequent, np.intp), self.min_cell)
        page.figure(
            together_figure(shares, [self.facts.labels[label] for label in frequent]),
            f"The {len(frequent)} most frequent labels: of the records with the row's label, the "
            "share that has the column's as well, in %."
            + (" Grey: a count behind it is small." if np.isnan(shares).any() else ""),
        )

    def _rejected(self, page: HtmlPage) -> None:
        if not self.records.reasons:
            return
        page.section("Rejected")
        order = sorted(self.records.reasons, key=lambda reason: -self.records.reasons[reason])
        if any(not self.system.is_open(("reason", reason)) for reason in order):
            order.sort()  # by name: the order would tell which hidden count is larger
        rows: list[list[Cell]] = []
        found = self.system.values["found"]
        for reason in order:
            count = _cell(self.system, ("reason", reason))
            share: Cell = None
            if isinstance(count, int) and self.system.is_open("found"):
                share = 100 * count / found
            rows.append([reason, count, share, _explanation(reason)])
        columns = [Column("reason"), Column("records", ","), Column("% of found", ".3f")]
        totals = ["all", _cell(self.system, "rejected"), None, ""]
        page.table([*columns, Column("what it means")], rows, totals=totals)

    def _quirks(self, page: HtmlPage) -> None:
        statements = self.facts.summary["statements"]
        rows: list[list[Cell]] = []
        # Other tables hold what a quirk comes to over all sites, or nearly so. Where one site has
        # few, the others' counts would give them away.
        uneven = {
            quirk["name"]
            for quirk in self.facts.quirks
            if not self._is_sayable(int(quirk["found"]))
        }
        for quirk in self.facts.quirks:
            count = int(quirk["found"])
            shown: Cell = count
            if count and quirk["name"] in uneven:
                shown = Withheld("hidden" if self._is_sayable(count) else f"<{self.min_cell}")
            name = str(quirk["name"]).replace("_", " ")
            rows.append([str(quirk["site"]), name, shown, quirk["published"]])
        if not rows and not statements["read"]:
            return
        page.section("What is odd about the tables")
        if rows:
            columns = [Column("site"), Column("what"), Column("found", ",")]
            page.table([*columns, Column("published", ",")], rows)
        if statements["read"] and self._is_sayable(statements["in_no_label"]):
            page.paragraph(
                f"{statements['in_no_label']:,} of {statements['read']:,} statements bear on no "
                f"label ({statements['different_in_no_label']:,} of "
                f"{statements['different']:,} different ones). They may be free text and are "
                "listed in the private folder only."
            )

    def _is_sayable(self, count: int) -> bool:
        return not 0 < count < self.min_cell

    def _provenance(self, page: HtmlPage) -> None:
        manifest = self.manifest
        page.section("Where it comes from")
        options = manifest.vocabulary.get("options", {})
        split = {
            name: value
            for name, value in manifest.split.items()
            if name not in ("fingerprint", "kind", "name") and isinstance(value, int | float | list)
        }
        stages = manifest.signal.get("stages", ())
        num_bytes = sum(entry.bytes for entry in manifest.shards)
        size = f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
        page.definitions(
            {
                "Source": manifest.source,
                "Data set": manifest.fingerprint,
                "Labels": f"{manifest.vocabulary.get('name', '')} "
                f"({manifest.fingerprints['vocabulary']}), read by {self.facts.label_source}"
                + "".join(f", {name}={value}" for name, value in options.items()),
                "Signal": f"{manifest.signal.get('name', '')} "
                f"({manifest.fingerprints['signal_profile']}; what is in the shards: "
                f"{manifest.fingerprints['signal_build']}): {', '.join(map(str, stages))}",
                "Leads": ", ".join(manifest.leads),
                "Split": f"{manifest.split.get('name') or manifest.split.get('kind', '')} "
                f"({manifest.fingerprints['split']})"
                + "".join(f", {name}={value}" for name, value in split.items()),
                "Secret of the keys": f"fingerprint {manifest.fingerprints['secret']}",
                "Shards": f"{_number(len(manifest.shards), 'file')}, {size}, "
                + _number(len(manifest.increments), "increment"),
                "Versions": f"ecgfounder_train {manifest.package_version}, shard format "
                f"{manifest.format_version}",
            }
        )


def _order(dimension: str, value: str) -> tuple[bool, float, str]:
    """Return what sorts the rows: numbers as numbers, what is not known last."""
    if value in (UNKNOWN, GONE):
        return True, 0.0, value
    if dimension == "site" or dimension == "sex":
        return False, 0.0, value
    return False, float(value.rstrip("+").split("-")[0] or 0), value


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _same_for_all(dimension: str, value: str) -> str:
    if value == UNKNOWN:
        return "Not known of any record."
    return f"The same for all records: {value}{' Hz' if dimension == 'fs' else ''}."


def _text(system: CountSystem, name: Name) -> str:
    cell = _cell(system, name)
    return f"{cell:,}" if isinstance(cell, int) else cell.text


def _cell(system: CountSystem, name: Name) -> int | Withheld:
    if system.is_open(name):
        return system.values[name]
    return Withheld(f"<{system.min_cell}" if system.covers[name] is Cover.SMALL else "hidden")


def _percent(system: CountSystem, part: str) -> Cell:
    if not (system.is_open((part, "positive")) and system.is_open((part, "observed"))):
        return Withheld("hidden")
    observed = system.values[part, "observed"]
    return 100 * system.values[part, "positive"] / observed if observed else Undefined("")


_READERS = {
    "software": "the recorder's software",
    "v24": "the 12SL program, run again (v24),",
    "physician_else_software": "the physician, or where nobody read it the recorder's software,",
}


def _reader(label_source: str) -> str:
    return _READERS.get(label_source, f"the {label_source.replace('_', ' ')}")


def _explanation(reason: str) -> str:
    return EXPLANATIONS[RejectReason(reason)] if reason in set(RejectReason) else ""

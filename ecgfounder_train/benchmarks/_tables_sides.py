"""The two sides of `bench.py tables`, each in a process of its own, so that peak memory is its own.

python -m ecgfounder_train.benchmarks._tables_sides ours|pandas FOLDER ROWS_MGH ROWS_EMORY
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

LABELS = "ecgfounder150"


def ours(root: Path, rows: tuple[int, int]) -> dict[str, Any]:
    """Build the catalog of all tables: joins, labels packed, merges, keys, split, counts."""
    from ecgfounder_train.catalog import build_catalog, write_catalog
    from ecgfounder_train.core.pseudonyms import Secret
    from ecgfounder_train.labels import Vocabulary
    from ecgfounder_train.records.sources import open_source
    from ecgfounder_train.splits import PatientSplit

    start, cpu = time.perf_counter(), time.process_time()
    table = open_source({"name": "heedb", "root": root}).read()
    read_s, read_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    catalog = build_catalog(
        table, Vocabulary.load(LABELS), Secret(b"0" * 32), PatientSplit(), source_name="heedb"
    )
    built_s, built_cpu_s = time.perf_counter() - start, time.process_time() - cpu
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_catalog(root / "private" / "catalog.parquet", catalog)
    assert catalog.facts is not None
    positives = catalog.facts.prevalence["physician"]
    return {
        "rows": catalog.frame.height,
        "read_s": read_s,
        "read_cpu_s": read_cpu_s,
        "seconds": built_s,
        "cpu_s": built_cpu_s,
        "write_s": time.perf_counter() - start - built_s,
        "peak_bytes": peak_bytes,
        "with_label": catalog.summary["with_label"],
        "positives": sum(sum(part["positive"]) for part in positives.values()),
        "quirks": [quirk._asdict() for quirk in table.quirks],
    }


def pandas(root: Path, rows: tuple[int, int]) -> dict[str, Any]:
    """Do with pandas what a script would: needed columns, merge on the stem, labels, counts.

    One label table only (the physician's), no keys, no agreement: less than ours does.
    """
    import hashlib

    import numpy as np
    import pandas as pd

    from ecgfounder_train.labels import Vocabulary

    start, cpu = time.perf_counter(), time.process_time()
    vocabulary = Vocabulary.load(LABELS)
    columns: dict[str, list[int]] = {}
    for code in {code for entry in vocabulary.entries for code in entry.codes + entry.alternatives}:
        columns[code] = np.flatnonzero(vocabulary.encode([code])[0]).tolist()
    merges = pd.read_csv(root / "PatientMergeHistory" / "PatientMergeHistory.csv")
    smallest = {
        old: min(old, new) for old, new in zip(*(merges[name] for name in merges), strict=True)
    } | {new: min(old, new) for old, new in zip(*(merges[name] for name in merges), strict=True)}
    total, with_label, positives = 0, 0, 0
    for site, number in zip(("I0001", "I0006"), rows, strict=True):
        folder = root / "ECG" / site
        sex = "SexDSC" if site == "I0001" else "Sex"
        wanted = ["BDSPPatientID", "FileName", sex, "AgeAtAcquisition"]
        metadata = pd.read_csv(folder / "metadata" / "metadata.csv", usecols=wanted, nrows=number)
        codes = pd.read_csv(
            folder / "12SL_diagnoses" / "diagnoses_acquisition.csv",
            usecols=["FileName", "codes_software", "codes_physician"],
            nrows=number,
        )
        v24 = pd.read_csv(
            folder / "12SL_diagnoses" / "diagnoses_v24.csv",
            usecols=["FileName", "codes"],
            nrows=number,
        )
        for table in (metadata, codes, v24):
            names = table.pop("FileName").str.strip().str.removesuffix(".hea")
            table["stem"] = names.str.rsplit("/", n=1).str[-1]
        joined = metadata.merge(codes, on="stem", how="left").merge(v24, on="stem", how="left")
        patient = joined["BDSPPatientID"].map(smallest).fillna(joined["BDSPPatientID"])
        draws = {
            one: int(hashlib.sha256(str(one).encode()).hexdigest()[:8], 16) / 2**32
            for one in patient.dropna().unique()
        }
        joined["test"] = patient.map(draws) < 0.1
        flags = np.zeros((len(joined), vocabulary.num_labels), np.uint8)
        read = joined["codes_physician"].notna().to_numpy()
        for row, cell in enumerate(joined["codes_physician"]):
            if isinstance(cell, str):
                for code in cell.split(","):
                    for column in columns.get(code.strip(), ()):
                        flags[row, column] = 1
        packed = np.packbits(flags, axis=1)
        total += len(packed)
        with_label += int((read & patient.notna().to_numpy()).sum())
        positives += int(flags[patient.notna().to_numpy()].sum())
        joined.groupby("test").size()
    return {
        "rows": total,
        "seconds": time.perf_counter() - start,
        "cpu_s": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "with_label": with_label,
        "positives": positives,
    }


if __name__ == "__main__":
    side = {"ours": ours, "pandas": pandas}[sys.argv[1]]
    print(json.dumps(side(Path(sys.argv[2]), (int(sys.argv[3]), int(sys.argv[4])))))

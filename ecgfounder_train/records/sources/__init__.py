"""Sources of recordings: one module per source, each returning the same table.

`open_source({"name": "ptbxl", "root": folder}).read()` returns a `SourceTable`: one row per
recording with path, patient and statements. Nothing here reads a signal.

A new source is one new module in this folder with a class `SOURCE` (see `ptbxl.py`): a frozen
dataclass whose fields are its settings, and a method `read() -> SourceTable`. It is found by its
file name; no other file changes except a `configs/source/<name>.yaml`.
"""

from ecgfounder_train.records.sources.table import (
    RECORD_COLUMNS,
    Source,
    SourceTable,
    open_source,
    source_names,
)

__all__ = ["RECORD_COLUMNS", "Source", "SourceTable", "open_source", "source_names"]

"""What the statements of other data sets say about a model's labels: one CSV per pair.

`LabelMap.load("ptbxl", "ecgfounder150", labels)` takes `ecgfounder150.ptbxl.csv`. Its columns:

| column | meaning |
|---|---|
| `label` | a label of the model |
| `implies` | statements that make it positive; empty: the label is not evaluated |
| `published` | the same as the original evaluation had it, mistakes included (`map=published`) |
| `excludes` | statements that make it negative where `leaves_open` holds `*` |
| `leaves_open` | statements after which the label may hold; `*`: also all not in `excludes` |
| `unobserved_at` | sites that never state it, or whose statement of it is known to be wrong |
| `agreement` | `exact`, `broader`, `narrower` or `proxy`: the statement against the label |
| `justification` | the clinical reason, or why the label is not evaluated |

An expression is statements joined by `|` (any of) and `&` (all of, binding tighter). `*` stands for
any text and `%` for any letters of one word; case, hyphens and abbreviations do not matter
(`spelling.py`). `@name` stands for a set of statements in `sets.csv`. Within one sentence the
longer term of a row covers the shorter ones of its other columns: "incomplete right bundle branch
block" does not imply the complete one. A label that no statement implies, excludes or leaves open
is negative.
"""

from ecgfounder_train.labels.maps.label_map import (
    LabelMap,
    MappedLabel,
    StatementCoverage,
    label_families,
    map_names,
)

__all__ = ["LabelMap", "MappedLabel", "StatementCoverage", "label_families", "map_names"]

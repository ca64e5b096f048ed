"""How a model's labels read in the statements of other data sets: one CSV per pair, here beside.

`LabelMap.load("ptbxl", "ecgfounder150", labels)` takes `ecgfounder150.ptbxl.csv`. Its columns:

| column | meaning |
|---|---|
| `label` | a label of the model |
| `ours` | statements that make it positive; empty: the label is not evaluated |
| `published` | the same as the original evaluation had it, mistakes included (`map=published`) |
| `unobserved_if` | statements that leave the answer open unless it is positive |
| `unobserved_at` | sites that never state it: absence there means nothing |
| `agreement` | `exact`, `broader`, `narrower` or `proxy`: the statement against the label |
| `justification` | why so, or why the label is not evaluated |

An expression is statements joined by `|` (any of) and `&` (all of, binding tighter). `*` stands for
any text; case does not matter.
"""

from ecgfounder_train.labels.maps.label_map import (
    LabelMap,
    MappedLabel,
    label_families,
    map_names,
)

__all__ = ["LabelMap", "MappedLabel", "label_families", "map_names"]

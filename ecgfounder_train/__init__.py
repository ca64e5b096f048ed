"""Pretraining of ECG foundation models: from a WFDB archive to an evaluated checkpoint.

The sub-packages follow the way the data flows, and import only upstream::

    records -> labels -> catalog -> splits -> shards -> loader -> models -> training -> evaluation

`core` and `figures` serve all of them. Nothing here imports hydra except `ecgfounder_train.app`,
and only `training`, `loader.datamodule` and `finetuning` import lightning.

For people who only use weights: ``ecgfounder_train.load_model(path).predict(records)``.
"""

import os
from typing import TYPE_CHECKING, Any

from ecgfounder_train.core.interrupts import end_script_at_ctrl_c
from ecgfounder_train.core.threads import bound_spinning

# Here, as this is the first of ours that a script imports, before torch.
end_script_at_ctrl_c()
bound_spinning()

# Before polars and Arrow are loaded: what they free goes back to the system at once, not after a
# while. Of a catalog of ten million records that is a gigabyte of the peak.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")

if TYPE_CHECKING:
    from ecgfounder_train.inference import load_model as load_model

__version__ = "0.1.0"
__all__ = ["__version__", "load_model"]


def __getattr__(name: str) -> Any:
    # Lazily: `import ecgfounder_train` must not cost torch's second.
    if name == "load_model":
        from ecgfounder_train.inference import load_model as found

        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

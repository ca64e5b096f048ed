"""Pretraining of ECG foundation models: from a WFDB archive to an evaluated checkpoint.

The sub-packages follow the way the data flows, and import only upstream::

    records -> labels -> catalog -> splits -> shards -> loader -> models -> training -> evaluation

`core` and `figures` serve all of them. Nothing here imports hydra except `ecgfounder_train.app`,
and only `training`, `loader.datamodule` and `finetuning` import lightning.

For people who only use weights: ``ecgfounder_train.load_model(path).predict(records)``.
"""

import importlib
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
    from ecgfounder_train.library import open_shards as open_shards
    from ecgfounder_train.loader.datamodule import ShardDataModule as ShardDataModule
    from ecgfounder_train.models import create_model as create_model

__version__ = "0.1.0"

# Imported when they are used: `import ecgfounder_train` must not cost torch's second.
_LAZY = {
    "ShardDataModule": "ecgfounder_train.loader.datamodule",
    "create_model": "ecgfounder_train.models",
    "load_model": "ecgfounder_train.inference",
    "open_shards": "ecgfounder_train.library",
}
__all__ = ["ShardDataModule", "__version__", "create_model", "load_model", "open_shards"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

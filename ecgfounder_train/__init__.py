"""Pretraining of ECG foundation models: from a WFDB archive to an evaluated checkpoint.

The sub-packages follow the way the data flows, and import only upstream::

    records -> labels -> catalog -> splits -> shards -> loader -> models -> training -> evaluation

`core` and `figures` serve all of them. Nothing here imports hydra except `ecgfounder_train.app`,
and only `training`, `loader.datamodule` and `finetuning` import lightning.
"""

__version__ = "0.1.0"

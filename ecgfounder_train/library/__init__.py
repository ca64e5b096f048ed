"""The Python library: shard sets for notebooks and for training loops that are not ours.

`ecgfounder_train.open_shards(folder)` is the entrance; `ecgfounder_train.load_model` and
`create_model` are in `inference` and `models`.
"""

from ecgfounder_train.library.shards import ShardRecord, Shards, open_shards

__all__ = ["ShardRecord", "Shards", "open_shards"]

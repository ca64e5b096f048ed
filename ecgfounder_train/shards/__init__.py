"""From a catalog to shards: plan, crash-safe writer, index, manifest, verify."""

from ecgfounder_train.shards.index import INDEX_NAME, SEXES, SPLITS, index_dtype
from ecgfounder_train.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    Totals,
    read_manifest,
)
from ecgfounder_train.shards.sample import Sample, SampleLayout, signal_checksum
from ecgfounder_train.shards.shard_set import ShardSet

__all__ = [
    "FORMAT_VERSION",
    "INDEX_NAME",
    "MANIFEST_NAME",
    "SEXES",
    "SPLITS",
    "Manifest",
    "Sample",
    "SampleLayout",
    "ShardEntry",
    "ShardSet",
    "Totals",
    "index_dtype",
    "read_manifest",
    "signal_checksum",
]

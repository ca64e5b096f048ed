"""From a catalog to shards: plan, crash-safe writer, index, manifest, verify."""

from ecgfounder_train.shards.build import BuildOptions, build_shards
from ecgfounder_train.shards.engines import ExecutorOptions
from ecgfounder_train.shards.index import INDEX_NAME, SEXES, index_dtype
from ecgfounder_train.shards.manifest import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    IncrementEntry,
    Manifest,
    ShardEntry,
    Totals,
    read_manifest,
)
from ecgfounder_train.shards.plan import PlannedShard, plan_shards, sort_catalog
from ecgfounder_train.shards.rebuild import rebuild
from ecgfounder_train.shards.sample import Sample, SampleLayout, signal_checksum
from ecgfounder_train.shards.shard_set import ShardSet
from ecgfounder_train.shards.verify import VerifyReport, verify
from ecgfounder_train.shards.writer import BuiltShard, RecordPlace, build_shard

__all__ = [
    "FORMAT_VERSION",
    "INDEX_NAME",
    "MANIFEST_NAME",
    "SEXES",
    "BuildOptions",
    "BuiltShard",
    "ExecutorOptions",
    "IncrementEntry",
    "Manifest",
    "PlannedShard",
    "RecordPlace",
    "Sample",
    "SampleLayout",
    "ShardEntry",
    "ShardSet",
    "Totals",
    "VerifyReport",
    "build_shard",
    "build_shards",
    "index_dtype",
    "plan_shards",
    "read_manifest",
    "rebuild",
    "signal_checksum",
    "sort_catalog",
    "verify",
]

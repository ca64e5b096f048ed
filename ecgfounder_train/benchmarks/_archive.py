"""Synthetic archives as shards, for the benchmarks that train."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.shards import BuildOptions, ShardSet
from ecgfounder_train.splits import PatientSplit


def prepared(
    folder: Path,
    archive: Mapping[str, Any],
    split: PatientSplit,
    options: BuildOptions | None = None,
    mark: str = "",
) -> ShardSet:
    """Return the shards of an archive at 100 Hz; what was made before is used again.

    Args:
        folder: Where all of it lies. Archives beside each other in one folder share its secret, so
            the same recording has the same key in each of them.
        archive: Settings of the archive, as `simulate` takes them.
        split: Of its patients.
        options: How the shards are built.
        mark: Behind the names of this archive's folders.
    """
    from ecgfounder_train.catalog import build_catalog
    from ecgfounder_train.core.pseudonyms import load_or_create_secret
    from ecgfounder_train.labels import Vocabulary
    from ecgfounder_train.records import SignalProfile
    from ecgfounder_train.records.sources import open_source
    from ecgfounder_train.shards import build_shards
    from ecgfounder_train.simulate import write_archive

    root, target = folder / f"archive{mark}", folder / f"shards{mark}"
    if not root.is_dir():
        partial = folder / f"archive{mark}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        write_archive({"out": str(partial), **archive})
        partial.rename(root)
    composed = compose_config(
        "prepare", ["source=heedb", f"source.root={root}", f"shards={target}", "signal.fs=100"]
    )
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    table = open_source(config["source"]).read()
    vocabulary = Vocabulary.from_config(config["labels"])
    secret = load_or_create_secret(folder / "secret.key")
    build_shards(
        build_catalog(table, vocabulary, secret, split, source_name="heedb").frame,
        target,
        root=table.root,
        profile=SignalProfile.from_config(config["signal"]),
        vocabulary=vocabulary,
        split=split,
        secret=secret,
        source_name="heedb",
        options=options or BuildOptions(),
        private=folder / f"private{mark}",
        read_ecg=table.read_ecg,
    )
    return ShardSet.open(target)

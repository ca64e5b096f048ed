"""Compatibility of a checkpoint with the settings of a start, and the settings that differ.

Two kinds of difference. What decides what the numbers of a checkpoint mean (labels, signal, split,
data and its order, network, seed) can never change: `require_compatible`. What changes the
experiment (loss, rate, batch, augmentation, monitor, precision ...) is listed by
`changed_settings` and has to be allowed by name. How and where a run happens (ranks, threads,
workers, log, budget) may change at any start and is only recorded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.training.run_state import RunMetadata

_MEANING = {
    "vocabulary": "vocabulary or options of its labels",
    "signal_profile": "signal profile",
    "split": "split into train, val and test",
    "data": "set of shards",
    "model": "network",
    "patients": "share of the training patients",
    "order": "order of the data (data.order, data.block_shards, data.last_batch)",
}
_OF_SHARDS = ("vocabulary", "signal_profile", "split")
"""What is decided when shards are made, so that other shards follow from it."""
_SHOWN = 3

OPERATIONAL = (
    *("run", "paths", "shards", "hydra", "resume", "overwrite", "logger", "log_every_steps"),
    *("expect_split", "launcher", "start_checkpoint", "format", "steps"),
    *("checkpoint.every_s", "checkpoint.every_samples", "checkpoint.keep"),
    *("checkpoint.background", "checkpoint.mode", "checkpoints"),
    *("data.batch_size_per_rank", "data.checksum", "data.num_workers", "data.stream"),
    *("data.cache_dir", "data.cache_bytes", "data.on_bad_sample"),
    # Compared by their fingerprints.
    *("data.order", "data.block_shards", "data.last_batch", "data.reader"),
    *("data.patient_fraction", "data.patient_seed", "model", "seed", "signal"),
    *("budget.max_epochs", "budget.max_samples", "budget.patience", "faults", "probe"),
    # `hardware` of the checkpoint has the precision that auto stands for.
    "trainer",
    # Of fine-tuning: where weights and answers are found, and how the test part is reported.
    *("from_run", "cache", "controls", "threshold", "calibration", "batch_size"),
    *("label_fractions", "seeds", "inits", "scratch_lr", "min_samples", "task.table"),
    "task.records",
)
"""Keys, and sections, that may differ between two starts of a run."""


def require_compatible(
    checkpoint: Mapping[str, Any], metadata: RunMetadata, path: Path | str
) -> None:
    """Raise if a checkpoint was made with other data, another order of it or another network.

    Raises:
        UserError: Names what differs, and how to continue.
    """
    found = checkpoint["fingerprints"]
    differing = [name for name in _MEANING if found.get(name) != metadata.fingerprints.get(name)]
    of_shards = [name for name in _OF_SHARDS if name in differing]
    if of_shards:
        differing = [name for name in differing if name != "data"]
    other = [_MEANING[name] + _detail(name, checkpoint, metadata) for name in differing]
    before, now = checkpoint["rng"]["seed"], metadata.config["seed"]
    if before != now:
        other.append(f"seed ({before}, now {now})")
    # Moments belong to a place in a group, and the groups follow from it.
    before, now = (
        config.get("optimizer", {}).get("decay_all", True)
        for config in (checkpoint["config"], metadata.config)
    )
    if before != now:
        other.append(f"choice of what decays (optimizer.decay_all={before}, now {now})")
    if other:
        where = ", with the shards= it was trained on" if of_shards else ""
        raise UserError(
            f"The checkpoint {Path(path).name} is incompatible with these settings: another "
            f"{' and another '.join(other)}. Use the original settings{where} (config.yaml of its "
            "run holds them), or a new run=NAME."
        )


def changed_settings(
    checkpoint: Mapping[str, Any], metadata: RunMetadata
) -> dict[str, tuple[Any, Any]]:
    """Return what changes the experiment: key to (value of the checkpoint, value now).

    A key that one of the two does not have is of another version, and had its default there.
    """
    before, now = (dict(_leaves(part)) for part in (checkpoint["config"], metadata.config))
    changed = {
        key: (before[key], now[key])
        for key in now
        if key in before and before[key] != now[key] and not _is_operational(key)
    }
    precisions = checkpoint.get("hardware", {}).get("precision"), metadata.hardware["precision"]
    if None not in precisions and precisions[0] != precisions[1]:
        changed["trainer.precision"] = precisions
    return changed


def require_allowed(changed: Mapping[str, tuple[Any, Any]], allow: Sequence[str], run: str) -> None:
    """Raise unless every changed setting is allowed by its key or its section.

    Raises:
        UserError: Lists what is not, with the key that allows it.
    """
    refused = [key for key in changed if not any(_covers(name, [key]) for name in allow)]
    if refused:
        listed = "; ".join(f"{key}={changed[key][0]}, now {changed[key][1]}" for key in refused)
        allowed = ",".join([*allow, *sorted({_shortest(key) for key in refused})])
        raise UserError(
            f"Run {run!r} was trained with other settings: {listed}. A run is one experiment: use "
            f"the original settings or a new run=NAME, or accept the change with "
            f"resume.allow=[{allowed}]."
        )


def _shortest(key: str) -> str:
    """Return the key that allows a change: of a group such as loss the whole section."""
    section = key.split(".")[0]
    return section if section in ("loss", "schedule", "augmentation") else key


def _covers(name: str, keys: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in keys)


def _is_operational(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in OPERATIONAL)


def _detail(name: str, checkpoint: Mapping[str, Any], metadata: RunMetadata) -> str:
    """Return both values of what differs as a phrase, where that is short."""
    part = {"vocabulary": "vocabulary", "signal_profile": "signal", "model": "model"}.get(name)
    if part is None:
        if name != "split":
            return ""
        return f" ({checkpoint['fingerprints'].get(name)}, now {metadata.fingerprints.get(name)})"
    before, now = (
        {
            key: value
            for key, value in _leaves(spec.get(part) or {})
            if not isinstance(value, list | tuple) or len(value) <= 12
        }
        for spec in (checkpoint["spec"], metadata.spec)
    )
    pairs = [
        f"{key}={before.get(key)}, now {now.get(key)}"
        for key in sorted(before.keys() | now.keys(), key=lambda key: (key != "name", key))
        if before.get(key) != now.get(key) and not key.endswith("fingerprint")
    ]
    more = f"; and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
    return f" ({'; '.join(pairs[:_SHOWN])}{more})" if pairs else ""


def _leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of nested sections by their whole names."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", list(value) if isinstance(value, tuple) else value

"""Checks of the folders, runs and weights that a config names, before torch is imported.

Whatever uses them checks again, and more: here only what does not exist is found, at once.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory

_READ_SHARDS = ("pretrain", "doctor", "verify", "ablate", "evaluate", "finetune")
_READ_WEIGHTS = ("evaluate", "export", "predict", "finetune")


def check_paths(verb: str, config: Mapping[str, Any]) -> None:
    """Raise for shards, runs or weights that do not exist.

    Raises:
        UserError: Names the path or the run, and the nearest names.
    """
    shards = config.get("shards")
    if verb in _READ_SHARDS and shards and "://" not in str(shards) and not Path(shards).is_dir():
        raise UserError(f"There is no folder {shards}. Set shards= to what prepare wrote.")
    if verb not in _READ_WEIGHTS:
        return
    for name in _runs(verb, config):
        RunDirectory.existing(config["paths"]["runs"], name)
    run = config.get("from_run" if verb == "finetune" else "run")
    weights = str(config.get("checkpoint"))
    is_path = weights not in ("best", "last", "none", "None") and "://" not in weights
    if run is None and is_path and not config.get("compare") and not Path(weights).exists():
        raise UserError(f"There is no checkpoint {weights}.")


def _runs(verb: str, config: Mapping[str, Any]) -> Iterator[str]:
    if verb == "finetune":
        named = [config.get("from_run")]
    else:
        named = [config.get("run"), *(config.get("compare") or ()), *(config.get("average") or ())]
    yield from (str(name) for name in named if name is not None)

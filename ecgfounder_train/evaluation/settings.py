"""Settings of an evaluation: `configs/evaluate.yaml`, parsed once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.weights.trained_model import choose_device

_SHOWN = (
    *("split", "map", "windows", "pool", "crops", "threshold", "calibration"),
    *("controls", "scratch"),
)
"""Keys that a report names; the others do not change a number."""


@dataclass(frozen=True)
class EvaluationSettings:
    """What is evaluated on what, and how; the keys of `configs/evaluate.yaml`.

    Attributes:
        runs: Folder of the runs.
        external: Name of an external set, empty for shards.
        native_labels: Vocabularies that read the external set's statements without a map.
        source: Config of the external set's source.
    """

    checkpoint: str
    average: tuple[str, ...]
    split: str | None
    shards: str | None
    cache_dir: str | None
    cache_bytes: float
    out: str | None
    pool: str
    windows: str | None
    crops: int
    group: str | None
    threshold: str
    calibration: str
    controls: bool
    scratch: str | None
    mistakes: int
    map: str
    secret: str | None
    batch_size: int
    device: torch.device
    runs: Path
    external: str
    native_labels: tuple[str, ...]
    source: Mapping[str, Any] | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "EvaluationSettings":
        """Return the settings of a composed `configs/evaluate.yaml`.

        Raises:
            UserError: Settings contradict each other.
        """
        external, average = config["external"], config["average"] or []
        own: dict[str, Any] = {
            "average": tuple(map(str, average if isinstance(average, list) else [average])),
            "checkpoint": str(config["checkpoint"]),
            "map": str(config["map"]),
            "scratch": str(config["scratch"]) if config["scratch"] else None,
            "device": choose_device(config["device"]),
            "runs": Path(config["paths"]["runs"]),
            "external": str(external["name"] or ""),
            "native_labels": tuple(external["native_labels"]),
            "source": config.get("source"),
        }
        taken = {key: config[key] for key in cls.__dataclass_fields__ if key not in own}
        settings = cls(**taken, **own)
        if settings.windows and not settings.external:
            raise UserError(
                "windows= is for external sets; the windows of shards were cut by prepare."
            )
        return settings

    @property
    def needs_training_shards(self) -> bool:
        """Whether what is evaluated is a split of the shards a run was trained on."""
        return not self.external and not self.shards

    def summary(self) -> dict[str, str]:
        """Return the rows of a provenance table."""
        shown = {key: getattr(self, key) for key in _SHOWN}
        return {
            "config": ", ".join(f"{key}={value}" for key, value in shown.items()),
            "fingerprint of the config": fingerprint(shown),
        }

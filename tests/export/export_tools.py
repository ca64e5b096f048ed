"""Calling scripts/export.py's work in this process."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.export.session import Exported, export


def composed(verb: str, *overrides: str) -> dict[str, Any]:
    plain = OmegaConf.to_container(compose_config(verb, list(overrides)), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def exported(run: RunDirectory, out: Path, *overrides: str) -> Exported:
    """Export a run's checkpoint."""
    arguments = [f"run={run.name}", f"paths.runs={run.path.parent}", f"out={out}", *overrides]
    return export(composed("export", *arguments))


def of_file(path: Path, out: Path, *overrides: str) -> Exported:
    """Export the weights in a file or folder."""
    return export(composed("export", f"checkpoint={path}", f"out={out}", *overrides))

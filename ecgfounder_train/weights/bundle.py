"""Exported bundle: `model.safetensors` and `ecg_model.json` in one folder.

The JSON says all that the numbers mean; both files are data only. A bundle is whole or refused: the
JSON holds the SHA-256 of the weights it was written with.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file, sha256_file
from ecgfounder_train.weights.outputs import Output

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "ecg_model.json"
FORMAT = "ecgfounder_train model"
FORMAT_VERSION = 1
_MAX_DESCRIPTION_BYTES = 16 << 20
REQUIRED = (
    *("format", "format_version", "model", "num_leads", "lead_choice"),
    *("outputs", "vocabulary", "signal", "decisions", "licence", "provenance"),
)
PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True)
class Bundle:
    """What a folder holds.

    Attributes:
        description: Content of `ecg_model.json`; its keys are `REQUIRED`.
        state: The network's state dict, floating-point numbers as float32 in any case.
        path: The weights file.
    """

    description: dict[str, Any]
    state: dict[str, Tensor]
    path: Path


def is_bundle(path: Path | str) -> bool:
    """Return whether a path means a bundle: a folder, or a safetensors file in one."""
    path = Path(path)
    return path.is_dir() or path.suffix == ".safetensors" or path.name == DESCRIPTION_FILE


def weights_file(path: Path | str) -> Path:
    """Return the file with the weights that a path means, whether a bundle or a file of its own."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    return folder / WEIGHTS_FILE if is_bundle(path) else path


def describe(
    model: Mapping[str, Any],
    num_leads: int,
    lead_choice: str,
    outputs: tuple[Output, ...],
    vocabulary: Mapping[str, Any],
    signal: Mapping[str, Any],
    decisions: Mapping[str, Any] | None,
    licence: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the description of a model, without its weights' checksum."""
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": dict(model),
        "num_leads": num_leads,
        "lead_choice": lead_choice,
        "outputs": [output.to_dict() for output in outputs],
        "vocabulary": dict(vocabulary),
        "signal": dict(signal),
        "decisions": None if decisions is None else dict(decisions),
        "licence": licence,
        "provenance": dict(provenance),
    }


def in_precision(state: Mapping[str, Tensor], precision: str) -> dict[str, Tensor]:
    """Return a state dict's floating-point tensors in another type, the others as they are."""
    dtype = PRECISIONS[precision]
    return {
        key: (value.to(dtype) if value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in state.items()
    }


def write_bundle(
    folder: Path | str,
    description: Mapping[str, Any],
    state: Mapping[str, Tensor],
    precision: str = "float32",
) -> Path:
    """Write the two files and return the folder; the JSON, which makes it a bundle, comes last.

    Raises:
        UserError: The folder cannot be written.
    """
    folder = Path(folder)
    weights = folder / WEIGHTS_FILE
    with atomic_file(weights) as handle:
        handle.write(save(in_precision(state, precision), metadata={"format": "pt"}))
    content = {
        **description,
        "weights": {
            "file": WEIGHTS_FILE,
            "sha256": sha256_file(weights),
            "precision": precision,
        },
    }
    with atomic_file(folder / DESCRIPTION_FILE, "w") as handle:
        json.dump(content, handle, indent=1, allow_nan=False)
        handle.write("\n")
    return folder


def read_bundle(path: Path | str) -> Bundle:
    """Return the bundle in a folder, or that of one of its two files.

    Raises:
        UserError: A file is absent, damaged, of another version, or they do not belong together.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    description = read_description(folder / DESCRIPTION_FILE)
    weights = folder / str(description["weights"]["file"])
    # The name in the JSON is always a file of this folder.
    if weights.parent != folder or not weights.is_file():
        raise UserError(f"There is no {weights.name} in {folder}, which its JSON speaks of.")
    if path.suffix == ".safetensors" and path.name != weights.name:
        raise UserError(f"{folder / DESCRIPTION_FILE} describes {weights.name}, not {path.name}.")
    try:
        state = load_file(weights)
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{weights} is damaged or no safetensors file ({error}). Copy it again."
        ) from error
    if sha256_file(weights) != description["weights"]["sha256"]:
        raise UserError(
            f"{weights} is not the file that {DESCRIPTION_FILE} describes (another SHA-256): "
            "damaged, or from another export. Copy both files again."
        )
    return Bundle(description, in_precision(state, "float32"), weights)


def read_description(path: Path) -> dict[str, Any]:
    """Return the content of an `ecg_model.json`.

    Raises:
        UserError: It is absent, damaged, foreign or of another version.
    """
    try:
        if path.stat().st_size > _MAX_DESCRIPTION_BYTES:
            raise ValueError(f"larger than {_MAX_DESCRIPTION_BYTES:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"There is no {path.name} in {path.parent}. It says what the weights' outputs and "
            "input mean; keep it beside them (scripts/export.py writes both)."
        ) from error
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}). Copy it again.") from error
    check_description(content, str(path))
    weights = content.get("weights")
    if not isinstance(weights, dict) or not {"file", "sha256"} <= set(weights):
        raise UserError(f"{path}: 'weights' does not name a file and its sha256.")
    description: dict[str, Any] = content
    return description


def check_description(content: Any, where: str) -> None:
    """Raise unless this is a whole description of this version.

    Raises:
        UserError: It is foreign, of another version, or lacks something.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{where} does not describe a model of this project.")
    if content.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{where} has format {content.get('format_version')}, this version of ecgfounder_train "
            f"reads {FORMAT_VERSION}. Use the version that wrote it, or export again."
        )
    if missing := [key for key in REQUIRED if key not in content]:
        raise UserError(f"{where} lacks {', '.join(missing)}. Export the model again.")

"""The weights released by the authors: read safely, load strictly.

The released file is a dict of epoch, step, state_dict, optimizer, scheduler and val_auroc. The last
is a numpy float64, which ``torch.load(weights_only=True)`` refuses unless it is allow-listed; the
usual answer, ``weights_only=False``, would run any code that a downloaded file contains.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models.net1d import MODEL_TABLE, Net1D, create_model
from ecgfounder_train.weights.checkpoint import damage
from ecgfounder_train.weights.state_dict import load_strict

State = dict[str, Any]

RELEASED_SIZE = "net1d_31m"
FIRST, HEAD = "first_conv.conv.weight", "dense.weight"
DESCRIPTION_KEY = "ecg_model"
"""Entry that scripts/export.py adds: what `ecg_model.json` says. The official code ignores it."""

# What a pickled numpy scalar is made of, under the names of numpy 2 and of numpy 1.
_SCALAR_TYPES = "?bBhHiIlLqQefd"  # booleans, integers, floats: numpy's letters
_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    *sorted({type(np.dtype(letter)) for letter in _SCALAR_TYPES}, key=repr),
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),  # type: ignore[attr-defined]
]


def read_official(path: Path | str) -> dict[str, Any]:
    """Return the released checkpoint's dict without running code from the file.

    Raises:
        UserError: no such file, not a checkpoint, or one that holds more than plain data.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint file {path}.")
    with open(path, "rb") as handle:
        start = handle.read(2)
    # torch writes zip archives since 1.6; older files are bare pickles without checksums.
    if (not start or start == b"PK") and (reason := damage(path)):
        raise UserError(
            f"{path} is damaged ({reason}). Copy or download it again, and compare its size with "
            "the published one."
        )
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # A foreign file fails in any way.
    except Exception as error:
        # torch adds advice that must not be followed here (weights_only=False).
        said = str(error).strip().split(". ")[0].splitlines()
        reason = said[0] if said else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason}). It "
            "is not a checkpoint, or contains code, which is never run."
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint's dict.")
    return checkpoint


def load_official(
    checkpoint: Path | str | Mapping[str, Any], name: str = RELEASED_SIZE, **overrides: Any
) -> Net1D:
    """Return the network with released weights, in evaluation mode.

    The numbers of leads and labels are read from the tensors, so the 12-lead and the single-lead
    file load alike.

    Args:
        checkpoint: the released file, its dict, or a bare state dict.
        name: the size the weights are of.
        overrides: as in `create_model`.

    Raises:
        UserError: the file is unreadable, or its tensors are not those of the named size.
    """
    if not isinstance(checkpoint, Mapping):
        checkpoint = read_official(checkpoint)
    state = official_state(checkpoint)
    first, head = state[FIRST], state[HEAD]
    model = create_model(name, num_leads=first.shape[1], num_labels=len(head), **overrides)
    load_strict(model, state, "The checkpoint", name, "Choose the size it was trained as.")
    return model.eval()


def official_state(checkpoint: Mapping[str, Any], where: Path | str = "The checkpoint") -> State:
    """Return the state dict in a checkpoint of the official form, or of a bare one.

    Raises:
        UserError: There is no Net1D in it; says what is instead.
    """
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping):
        raise UserError(f"{where}: 'state_dict' is a {type(state).__name__}, not a state dict.")
    state = {str(key).removeprefix("module."): value for key, value in state.items()}
    if not all(isinstance(state.get(key), Tensor) for key in (FIRST, HEAD)):
        whose = (
            " It is a Lightning checkpoint of another program, whose network is not this one."
            if "pytorch-lightning_version" in checkpoint
            else ""
        )
        raise UserError(
            f"{where} has no Net1D in it: {FIRST!r} or {HEAD!r} is missing among its "
            f"{len(state)} entries ({', '.join(list(state)[:5])}, ...).{whose}"
        )
    return state


def official_size(state: State) -> tuple[str, dict[str, Any]]:
    """Return the table's name for the size of a state dict, and the settings that differ from it.

    Strides and whether BatchNorm is used leave no trace in a state dict: they are the released
    ones.

    Raises:
        UserError: The tensors have other shapes than a Net1D's.
    """
    pattern = re.compile(r"stage_list\.(\d+)\.block_list\.(\d+)\.conv2\.conv\.weight")
    blocks = {
        (int(match[1]), int(match[2])): tuple(value.shape)
        for key, value in state.items()
        if (match := pattern.fullmatch(key)) and isinstance(value, Tensor) and value.ndim == 3
    }
    first = state[FIRST]
    num_stages = len({stage for stage, _ in blocks})
    depths = [sum(stage == number for stage, _ in blocks) for number in range(num_stages)]
    if first.ndim != 3 or not blocks or min(depths) < 1 or (0, 0) not in blocks:
        raise UserError("The checkpoint's stages are not those of a Net1D.")
    found = {
        "widths": tuple(blocks[stage, 0][0] for stage in range(num_stages)),
        "depths": tuple(depths),
        "base_filters": first.shape[0],
        "kernel_size": first.shape[2],
        "group_width": blocks[0, 0][1],
    }
    for name, config in MODEL_TABLE.items():
        if config.norm == "none" and all(getattr(config, key) == found[key] for key in found):
            return name, {}
    return RELEASED_SIZE, found

"""The weights released by the authors: read safely, load strictly.

The released file is a dict of epoch, step, state_dict, optimizer, scheduler and val_auroc. The last
is a numpy float64, which ``torch.load(weights_only=True)`` refuses unless it is allow-listed; the
usual answer, ``weights_only=False``, would run whatever code a downloaded file contains.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models.net1d import Net1D, create_model

# What a pickled numpy scalar is made of, under the names of numpy 2 and of numpy 1.
_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
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
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{path} cannot be read as a checkpoint of tensors and plain values ({reason}). "
            "Download it again, and compare its size with the published one."
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint's dict.")
    return checkpoint


def load_official(
    checkpoint: Path | str | Mapping[str, Any], name: str = "net1d_31m", **overrides: Any
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
    state: Mapping[str, Any] = checkpoint.get("state_dict", checkpoint)
    state = {key.removeprefix("module."): value for key, value in state.items()}  # DataParallel's
    first, head = state.get("first_conv.conv.weight"), state.get("dense.weight")
    if not isinstance(first, Tensor) or not isinstance(head, Tensor):
        raise UserError(
            "The checkpoint has no Net1D in it: 'first_conv.conv.weight' or 'dense.weight' is "
            f"missing among its {len(state)} entries ({', '.join(list(state)[:5])}, ...)."
        )
    model = create_model(name, num_leads=first.shape[1], num_labels=len(head), **overrides)
    expected = model.state_dict()
    problems = [f"{key} is missing" for key in expected if key not in state]
    problems += [f"{key} is not part of {name}" for key in state if key not in expected]
    problems += [
        f"{key} has shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if problems:
        raise UserError(
            f"The checkpoint does not hold a {name}: {len(problems)} of its tensors differ; "
            f"first {'; '.join(problems[:3])}. Choose the size it was trained as."
        )
    model.load_state_dict(dict(state), strict=True)
    return model.eval()

"""Strict loading of foreign state dicts: an error names what differs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ecgfounder_train.core.errors import UserError


def check_state(
    model: nn.Module, state: Mapping[str, Any], what: str, size: str, remedy: str
) -> None:
    """Raise unless a state dict holds exactly the tensors of a network, which may be on `meta`.

    Args:
        model: Says which tensors, and in which shapes.
        state: By the names of the network's state dict.
        what: Begins the message, such as "The checkpoint".
        size: Name of the network.
        remedy: Ends the message.

    Raises:
        UserError: A tensor is missing, foreign, of another shape, or holds NaN or infinity.
    """
    expected = model.state_dict()
    problems = [f"{key} is missing" for key in expected if key not in state]
    problems += [f"{key} is not part of {size}" for key in state if key not in expected]
    for key, value in expected.items():
        found = state.get(key)
        if key not in state:
            continue
        if not isinstance(found, Tensor):
            problems.append(f"{key} is a {type(found).__name__}, not a tensor")
        elif found.shape != value.shape:
            problems.append(f"{key} has shape {tuple(found.shape)} instead of {tuple(value.shape)}")
        elif found.is_floating_point() and not bool(found.isfinite().all()):
            problems.append(f"{key} holds NaN or infinity")
    if problems:
        raise UserError(
            f"{what} does not hold a {size}: {len(problems)} of its tensors differ; first "
            f"{'; '.join(problems[:3])}. {remedy}"
        )


def load_strict(
    model: nn.Module, state: Mapping[str, Any], what: str, size: str, remedy: str
) -> None:
    """Copy a state dict into a network of exactly its tensors.

    Args:
        model: Takes the tensors, in its own floating-point type.
        state, what, size, remedy: As in `check_state`.

    Raises:
        UserError: A tensor is missing, foreign, of another shape, or holds NaN or infinity.
    """
    check_state(model, state, what, size, remedy)
    model.load_state_dict(dict(state), strict=True)

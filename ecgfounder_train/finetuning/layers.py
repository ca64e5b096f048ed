"""Layer-wise learning rate decay: parameter groups by their distance from the head."""

import re
from typing import Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.finetuning.starting_point import HEAD_PREFIXES
from ecgfounder_train.models import Net1D
from ecgfounder_train.settings.training import OptimizerSettings

_STAGE = re.compile(r"stage_list\.(\d+)\.")


def distance_from_head(name: str, num_stages: int) -> int:
    """Return 0 for the head, 1 for the last stage, up to num_stages + 1 for the first layer."""
    if name.startswith(HEAD_PREFIXES):
        return 0
    stage = _STAGE.match(name)
    return num_stages - int(stage[1]) if stage else num_stages + 1


def layer_groups(
    model: Net1D, settings: OptimizerSettings, layer_decay: float
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer, the head's first.

    Each group's `lr_scale` is `layer_decay` to the power of its distance from the head.

    Raises:
        UserError: `layer_decay` is not above 0 and at most 1.

    Source: Clark et al. 2020 (ELECTRA, arXiv 2003.10555), layer-wise learning rate decay.
    """
    if not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay={layer_decay} must be above 0 and at most 1.")
    num_stages = len(model.stage_list)
    groups: dict[tuple[int, bool], list[Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = settings.decay_all or parameter.ndim > 1
            depth = distance_from_head(name, num_stages)
            groups.setdefault((depth, not decayed), []).append(parameter)
    return [
        {
            "params": groups[key],
            "weight_decay": 0.0 if key[1] else settings.weight_decay,
            "lr_scale": layer_decay ** key[0],
        }
        for key in sorted(groups)
    ]

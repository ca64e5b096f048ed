"""Our weights in the form of the released checkpoints, which the official code loads."""

from pathlib import Path
from typing import Any

import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.models import Net1D
from ecgfounder_train.weights.bundle import in_precision
from ecgfounder_train.weights.official import DESCRIPTION_KEY
from ecgfounder_train.weights.trained_model import TrainedModel

# What the official scripts build, independent of the file.
_FIXED = {"norm": "none", "pooling": "mean", "stem_stride": 2}


def require_expressible(trained: TrainedModel) -> None:
    """Raise unless the official class computes the same function from these tensors.

    Other widths, depths or leads are arguments of the official constructor and fail loudly where
    they differ. What is refused here would load there without a word and compute something else,
    or has no place in the class at all.

    Raises:
        UserError: Names each reason.
    """
    network = trained.model
    if not isinstance(network, Net1D):
        raise UserError(f"format=official holds Net1D networks, not a {type(network).__name__}.")
    config = network.config
    reasons = [
        f"model.{key}={getattr(config, key)} (official: {value})"
        for key, value in _FIXED.items()
        if getattr(config, key) != value
    ]
    strides = config.stage_strides or ()
    if set(strides) != {2}:
        reasons.append(f"model.stage_strides={list(strides)} (official: 2 in every stage)")
    if reasons:
        raise UserError(
            f"The official class cannot express this network: {'; '.join(reasons)}. It would load "
            "the tensors and compute something else. Use format=safetensors or format=onnx."
        )


def constructor_call(trained: TrainedModel) -> str:
    """Return the official class's constructor call for this network."""
    assert isinstance(trained.model, Net1D)
    config = trained.model.config
    return (
        f"Net1D(in_channels={config.num_leads}, base_filters={config.base_filters}, ratio=1, "
        f"filter_list={list(config.widths)}, m_blocks_list={list(config.depths)}, "
        f"kernel_size={config.kernel_size}, stride=2, groups_width={config.group_width}, "
        f"verbose=False, use_bn=False, use_do=False, n_classes={config.num_labels})"
    )


def official_content(trained: TrainedModel, precision: str = "float32") -> dict[str, Any]:
    """Return the dict of a released checkpoint, without the states of optimizer and scheduler.

    One entry more, which the official code does not read, holds what `ecg_model.json` says, so
    that we load the file with its own labels and signal profile.

    Raises:
        UserError: As `require_expressible`.
    """
    require_expressible(trained)
    numbers = trained.provenance.get("official", {})
    return {
        "epoch": int(numbers.get("epoch", 0)),
        "step": int(numbers.get("step", trained.provenance.get("global_step", 0))),
        "state_dict": in_precision(trained.model.state_dict(), precision),
        "optimizer": None,
        "scheduler": None,
        "val_auroc": numbers.get("val_auroc"),
        DESCRIPTION_KEY: trained.describe(),
    }


def write_official(trained: TrainedModel, path: Path, precision: str = "float32") -> None:
    """Write the file, whole or absent; plain containers only, `weights_only=True` loads it."""
    content = official_content(trained, precision)
    with atomic_file(path) as handle:
        torch.save(content, handle)

"""The config of a tiny ablation, for several tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.shards import ShardSet

FAST = (
    "model.base=net1d_3m_100hz",
    "+model.group_width=8",
    "trainer=cpu",
    "trainer.num_threads=1",
    "data.global_batch_size=16",
    "log_every_steps=1",
)
SIZES = "ablation.axes.model=[25000,60000]"


def ablation_config(shards: ShardSet | Path | None, base: Path, *arguments: str) -> dict[str, Any]:
    """Return the composed config of scripts/ablate.py; runs and reports lie below `base`."""
    folder = shards.folder if isinstance(shards, ShardSet) else shards
    given = {argument.split("=")[0] for argument in arguments}
    defaults = [
        "ablation.name=tiny",
        SIZES,
        "ablation.axes.seed=[0,1]",
        "ablation.budget.samples=64",
        quoted("ablation.overrides", FAST),
        f"paths.runs={base / 'runs'}",
        f"paths.ablations={base / 'ablations'}",
        *([f"shards={folder}"] if folder else []),
    ]
    words = [word for word in defaults if word.split("=")[0] not in given]
    plain = OmegaConf.to_container(compose_config("ablate", [*words, *arguments]), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def quoted(key: str, items: Sequence[str]) -> str:
    """Return a list as Hydra reads it, each item in quotes."""
    listed = ",".join(f'"{item}"' for item in items)
    return f"{key}=[{listed}]"

"""The published recipe as it composes: what is published is on, what is not is off."""

from pathlib import Path
from typing import Any

import pytest
import tiny_set
import torch
from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.loader.transforms import Augmentation
from ecgfounder_train.losses import create_loss
from ecgfounder_train.models import create_model
from ecgfounder_train.models.families import resolve_model
from ecgfounder_train.settings.training import (
    Budget,
    CheckpointSettings,
    DataSettings,
    EmaSettings,
)
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.build import DataOrder, create_module
from ecgfounder_train.training.config import RunConfig
from ecgfounder_train.training.module import OptimizerSettings
from ecgfounder_train.training.schedules import Plateau, Progress, Step, create_schedule

EXPERIMENTS = ("ecgfounder_12lead", "ecgfounder_1lead", "ecgfounder_12lead_step")
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "experiment"


def composed(*overrides: str) -> dict[str, Any]:
    config = compose_config("pretrain", ["shards=x", "run=y", *overrides])
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return plain


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_published_choices_are_on_and_everything_else_is_off(name: str) -> None:
    config = composed(f"experiment={name}")
    assert (config["model"]["name"], config["loss"]["name"]) == ("net1d_31m", "pu_hill")
    assert config["loss"]["margin"] == 1.5 and config["loss"]["positive"] == "log"
    optimizer = OptimizerSettings.from_config(config["optimizer"])
    assert (optimizer.name, optimizer.lr, optimizer.lr_rule) == ("adamw", 1e-3, "none")
    assert DataSettings.from_config(config["data"]).global_batch_size == 1024
    assert Budget.from_config(config["budget"]).max_epochs == 20
    # Nothing that nobody reported: regularisers, augmentation, average, clipping.
    assert Augmentation.from_config(config["augmentation"]) == Augmentation()
    assert config["model"]["norm"] == "none"
    off = ("dropout", "head_dropout", "drop_path")
    assert [config["model"][key] for key in off] == [0.0, 0.0, 0.0]
    assert config["loss"]["label_smoothing"] == 0.0
    assert EmaSettings.from_config(config["ema"]).half_life_samples is None
    assert config["gradient_clip_norm"] is None


def test_the_released_files_schedule_is_the_default_and_the_reported_one_has_a_name() -> None:
    released, reported = (composed(f"experiment={name}") for name in EXPERIMENTS[::2])
    plateau, step = (create_schedule(config["schedule"]) for config in (released, reported))
    assert plateau == Plateau(patience=10, divisor=10.0)
    assert step == Step(every_epochs=5.0, divisor=10.0)
    first, second = (
        CheckpointSettings.from_config(config["checkpoint"]) for config in (released, reported)
    )
    assert (first.monitor, first.mode) == ("val/macro_auroc", "max")
    assert (second.monitor, second.mode) == ("val/loss", "min")
    # Early stopping must leave the plateau schedule time to lower the rate and to profit from it.
    patience = Budget.from_config(released["budget"]).patience
    assert patience is not None and patience > 2 * plateau.patience
    seen = 10_000 * 1024  # of 7.5 M samples an epoch: where the released weights were taken
    assert step.factor(Progress(seen, 20 * 7_519_035, 7_519_035)) == 1.0
    assert step.factor(Progress(5 * 7_519_035, 20 * 7_519_035, 7_519_035)) == 0.1


def test_another_schedule_or_loss_can_be_given_beside_the_experiment() -> None:
    schedules = {
        create_schedule(composed("experiment=ecgfounder_1lead", f"schedule={name}")["schedule"])
        for name in ("step", "cosine", "plateau", "one_cycle", "constant")
    }
    assert len(schedules) == 5
    losses = {
        name: create_loss(**composed("experiment=ecgfounder_12lead", f"loss={name}")["loss"])
        for name in ("bce", "focal", "asymmetric", "pu_hill")
    }
    logits, targets = torch.tensor([[1.0]]), torch.tensor([[0.0]])
    values = {name: float(loss(logits, targets, targets + 1)) for name, loss in losses.items()}
    assert len(set(values.values())) == 4, values


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_choice_of_the_recipe_carries_its_evidence(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    settings = [
        line
        for line in text.splitlines()
        if line.startswith("  ") and ":" in line.split("#")[0] and "_self_" not in line
    ]
    silent = [
        line
        for line in settings
        if not any(grade in line for grade in ("[P]", "[R]", "[O]", "[A]", "[I]"))
        and "not stated" not in line
        and "none is reported" not in line
        and line.strip() not in ("mode: max", "mode: min")
    ]
    assert settings and not silent


@pytest.mark.parametrize(("choice", "num_leads"), [("12lead", 12), ("1lead", 1)])
def test_the_network_of_the_recipe_is_the_released_one(choice: str, num_leads: int) -> None:
    config = composed(f"experiment=ecgfounder_{choice}")
    settings = resolve_model(config["model"], num_leads, 150)
    with torch.device("meta"):
        model = create_model(settings.pop("name"), num_leads, 150, **settings)
    names = model.state_dict()
    assert len(names) == 509
    if num_leads == 12:
        assert sum(p.numel() for p in model.parameters()) == 30_819_014


def test_regularisers_and_augmentations_change_no_name_and_no_shape_of_the_state(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    def state(*overrides: str) -> dict[str, tuple[int, ...]]:
        config = tiny_set.tiny_config(tiny_shards, tmp_path, "run", *overrides)
        parsed = RunConfig.from_config(config)
        order = DataOrder.of(tiny_shards, parsed.data, parsed.numbers.seed)
        module, _ = create_module(parsed, tiny_shards, order)
        return {name: tuple(value.shape) for name, value in module.state_dict().items()}

    plain = state()
    everything = state(
        "model.dropout=0.1",
        "model.head_dropout=0.2",
        "model.drop_path=0.3",
        "loss=bce",
        "loss.label_smoothing=0.1",
        "loss.pos_weight=split",
        "augmentation=shift_gain_mixup",
        "augmentation.lead_dropout=0.1",
        "augmentation.white_noise=0.1",
        "augmentation.baseline_wander=0.1",
        "augmentation.muscle_noise=0.1",
    )
    assert everything == plain


def test_mixup_wants_an_even_number_of_samples_on_each_rank(
    tiny_shards: ShardSet, tmp_path: Path
) -> None:
    from ecgfounder_train.core.errors import UserError
    from ecgfounder_train.training.pretrain import train

    asked = ("augmentation.mixup=0.2", "data.global_batch_size=15")
    with pytest.raises(UserError, match="each rank holds 15 samples"):
        train(tiny_set.tiny_config(tiny_shards, tmp_path, "run", *asked))

"""Which runs an ablation consists of: axes in, members with their composed settings out."""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import MODEL_TABLE, Net1DConfig, forward_flops
from ecgfounder_train.models.families import FAMILY_MODEL, parameter_count, resolve_model
from ecgfounder_train.settings.ablation import BudgetRule
from ecgfounder_train.shards import ShardSet

STEP_FORWARDS = 3
"""A training step costs about three forward passes: one forward, two backward."""

SEED = "seed"


@dataclass(frozen=True)
class Choice:
    """One value of an axis: its name and the arguments it sets."""

    label: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Axis:
    """What is varied, and its choices."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Member:
    """One run of an ablation.

    Attributes:
        name: Of the run.
        variant: Its choices on all axes but the seed, in words; members that differ only in the
            seed have the same.
        choices: Label by axis.
        arguments: Of scripts/pretrain.py.
    """

    name: str
    variant: str
    choices: dict[str, str]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Sized:
    """A member with its settings composed and its network counted."""

    member: Member
    config: dict[str, Any] = field(repr=False)
    parameters: int
    flops_per_ecg: int
    samples: int

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run."""
        return float(STEP_FORWARDS * self.flops_per_ecg * self.samples)


@dataclass(frozen=True)
class Ablation:
    """An ablation's section of the config, read.

    Args:
        name: Runs are called name__member.
        axes: What is varied.
        budget: What is equal.
        overrides: Arguments for every member.
    """

    name: str
    axes: tuple[Axis, ...]
    budget: BudgetRule
    overrides: tuple[str, ...]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Ablation":
        """Return the ablation of a whole `configs/ablate.yaml`.

        Raises:
            UserError: Names what is wrong with the section.
        """
        section = dict(config["ablation"])
        for key in section:
            if key not in ("name", "axes", "budget", "overrides"):
                raise UserError(f"Unknown key ablation.{key}.")
        name = str(section["name"])
        axes = tuple(_axes(section["axes"] or {}))
        if not axes:
            raise UserError("ablation.axes is empty: name what is varied, for instance model.")
        overrides = (*(section["overrides"] or ()), *(config["overrides"] or ()))
        for item in overrides:
            if "=" not in str(item):
                raise UserError(f"overrides: {item!r} is no key=value of scripts/pretrain.py.")
        common = [f"paths.{key}={value}" for key, value in config["paths"].items()]
        if config["shards"] is not None:
            common.append(f"shards={config['shards']}")
        budget = BudgetRule.from_config(section["budget"])
        return cls(name, axes, budget, (*common, *map(str, overrides)))

    @property
    def members(self) -> list[Member]:
        """Every combination of choices, seed by seed: stopped early, all choices have some."""
        members = []
        axes = sorted(self.axes, key=lambda axis: axis.name != SEED)
        for chosen in itertools.product(*(axis.choices for axis in axes)):
            labels = {axis.name: choice.label for axis, choice in zip(axes, chosen, strict=True)}
            variant = ", ".join(label for name, label in labels.items() if name != SEED)
            last = sorted(labels, key=lambda name: name == SEED)
            name = "__".join([self.name, *(labels[axis] for axis in last)])
            arguments = [*self.overrides, *(a for choice in chosen for a in choice.arguments)]
            members.append(
                Member(
                    _as_run_name(name),
                    variant or self.name,
                    labels,
                    (*merged(arguments), f"run={_as_run_name(name)}"),
                )
            )
        names = [member.name for member in members]
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"ablation.axes gives {sorted(twice)[0]} twice: a value is repeated.")
        return members

    def size(self, member: Member) -> Sized:
        """Return a member with its settings composed, its network counted and its budget in ECGs.

        Raises:
            UserError: Its arguments are wrong, a network is unknown, or nothing has as many
                parameters as asked for.
        """
        config = compose_member(member, member.arguments)
        shards = ShardSet.open(config["shards"], check_files=False)
        network = network_of(config, shards)
        flops = forward_flops(network, shards.manifest.num_samples)
        if self.budget.flops is not None:
            samples = max(round(self.budget.flops / (STEP_FORWARDS * flops)), 1)
        else:
            samples = int(self.budget.samples or 0)
        arguments = merged([*member.arguments, f"budget.max_samples={samples}"])
        member = Member(member.name, member.variant, member.choices, tuple(arguments))
        config["budget"]["max_samples"] = samples
        return Sized(member, config, parameter_count(network), flops, samples)


def compose_member(member: Member, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the config of scripts/pretrain.py that a member's arguments lead to.

    Raises:
        UserError: They do not compose; the member is named.
    """
    try:
        composed = compose_config("pretrain", list(arguments))
    except UserError as error:
        raise UserError(f"Member {member.name}: {error}") from error
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def network_of(config: Mapping[str, Any], shards: ShardSet) -> Net1DConfig:
    """Return the network that a composed config trains on these shards.

    Raises:
        UserError: Unknown, or its target of parameters is not reached.
    """
    num_leads = len(shards.manifest.leads) if config["data"]["lead_choice"] == "all" else 1
    num_labels = len(shards.manifest.labels)
    settings = resolve_model(config["model"], num_leads, num_labels)
    base = MODEL_TABLE[settings.pop("name")]
    if "widths" in settings and "stage_strides" not in settings:
        settings["stage_strides"] = None
    kept = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return Net1DConfig(**{**kept, **settings, "num_leads": num_leads, "num_labels": num_labels})


def merged(arguments: Sequence[str]) -> list[str]:
    """Return arguments with each key once, a later value in the place of an earlier one."""
    last: dict[str, str] = {}
    for argument in arguments:
        key = argument.split("=", 1)[0].lstrip("+")
        last[key] = argument
    return list(last.values())


def short_count(number: float) -> str:
    """Return 200k, 2.5M or 1.2G for a number."""
    for factor, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{unit}"
    return f"{number:g}"


def _axes(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Axis]:
    """Yield the axes of nested mappings: key paths with values, or names with argument lists."""
    if path and tree and all(_is_arguments(value) for value in tree.values()):
        choices = [Choice(str(name), tuple(map(str, value))) for name, value in tree.items()]
        yield Axis(".".join(path), tuple(choices))
        return
    for key, value in tree.items():
        here = (*path, str(key))
        if isinstance(value, Mapping):
            yield from _axes(value, here)
        elif isinstance(value, Sequence) and not isinstance(value, str) and value:
            yield Axis(".".join(here), tuple(_choice(".".join(here), item) for item in value))
        else:
            raise UserError(
                f"ablation.axes.{'.'.join(here)}={value!r} is no list of values. For instance "
                "ablation.axes.model=[net1d_12m,net1d_26m]."
            )


def _is_arguments(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(
        isinstance(item, str) and "=" in item for item in value
    )  # fmt: skip


def _choice(axis: str, value: Any) -> Choice:
    if isinstance(value, Mapping | list):
        raise UserError(f"ablation.axes.{axis}: {value!r} is no single value.")
    if axis == "model" and isinstance(value, int | float):
        arguments = (f"model={FAMILY_MODEL}", f"model.target_parameters={value}")
        return Choice(short_count(value), arguments)
    name = axis.split(".")[-1]
    label = (
        str(value) if axis == "model" else f"{name}{value}" if name == SEED else f"{name}={value}"
    )
    # Python's words for these are not Hydra's.
    written = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
    return Choice(label, (f"{axis}={written}",))


def _as_run_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)

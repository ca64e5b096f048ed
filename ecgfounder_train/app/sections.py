"""Which section states which key: the settings of each verb and of each configuration group."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from hydra.core.config_store import ConfigStore

from ecgfounder_train.core.config import Section, Statement, defaults, statements

SWEEP = {
    # Only for --multirun; a single run's directory follows from its name.
    "hydra": {
        "output_subdir": None,
        "run": {"dir": "."},
        "sweep": {"dir": "outputs/multirun", "subdir": "${hydra.job.num}"},
    }
}


@dataclass(frozen=True)
class Group:
    """The sections of a configuration group.

    Args:
        by: Key of a composed section that selects its class; empty: there is one class.
        classes: `module:class` below ecgfounder_train by value of that key.
        others: `module:class` for every other value, empty: the group is not checked here.
    """

    by: str
    classes: Mapping[str, str]
    others: str = ""

    def of(self, section: Mapping[str, Any]) -> type[Section] | None:
        """Return the class that states the keys of a composed section."""
        where = self.classes.get(str(section.get(self.by, "")), self.others)
        return _load(where) if where else None

    def nodes(self) -> Iterator[tuple[str, type[Section]]]:
        """Yield the names under which group files refer to the sections, with their classes."""
        for key, where in self.classes.items():
            yield f"{key}_settings" if key else "settings", _load(where)
        if self.others:
            yield "settings", _load(self.others)


def _same_module(module: str, **classes: str) -> dict[str, str]:
    return {key: f"{module}:{name}" for key, name in classes.items()}


GROUPS: dict[str, Group] = {
    "trainer": Group("", {"": "settings.training:TrainerSettings"}),
    "optimizer": Group("", {"": "settings.training:OptimizerSettings"}),
    "augmentation": Group("", {"": "settings.training:Augmentation"}),
    "paths": Group("", {"": "settings.training:PathSettings"}),
    "logger": Group(
        "kind", {"wandb": "settings.training:WandbLogger"}, "settings.training:CsvLogger"
    ),
    "schedule": Group(
        "name",
        _same_module(
            "training.schedules",
            cosine="Cosine",
            step="Step",
            one_cycle="OneCycle",
            plateau="Plateau",
            constant="Constant",
        ),
    ),
    "loss": Group(
        "name",
        _same_module(
            "settings.losses",
            bce="BceSettings",
            pu_hill="HillSettings",
            focal="FocalSettings",
            asymmetric="AsymmetricSettings",
        ),
    ),
    "labels": Group("", {"": "settings.preparing:LabelSettings"}),
    "build": Group("", {"": "settings.preparing:BuildSettings"}),
    "executor": Group(
        "kind",
        _same_module(
            "settings.preparing",
            inline="InlineExecutor",
            local="LocalExecutor",
            slurm="SlurmExecutor",
        ),
    ),
    "ablation": Group("", {"": "settings.ablation:AblationSettings"}),
    "model": Group(
        "name",
        {"net1d_family": "settings.model:FamilySettings"},
        "settings.model:ModelSettings",
    ),
}

VERBS: dict[str, tuple[str, ...]] = {
    "pretrain": ("settings.training:PretrainSettings",),
    "prepare": ("settings.preparing:PrepareSettings",),
    "evaluate": ("settings.evaluation:EvaluateSettings",),
    "predict": ("settings.evaluation:PredictSettings",),
    "finetune": ("settings.finetuning:FinetuneSettings",),
    "export": ("settings.evaluation:ExportSettings",),
    "ablate": ("settings.ablation:AblateSettings",),
    "verify": ("settings.evaluation:VerifySettings",),
    "runs": ("settings.evaluation:RunsSettings",),
    "doctor": ("settings.training:DoctorSettings", "settings.training:PretrainSettings"),
}


def _load(where: str) -> type[Section]:
    module, name = where.split(":")
    found: type[Section] = getattr(import_module(f"ecgfounder_train.{module}"), name)
    return found


def verb_sections(verb: str) -> tuple[type[Section], ...]:
    """Return the classes that state the keys of a verb, the verb's own first."""
    return tuple(_load(where) for where in VERBS.get(verb, ()))


@cache
def register() -> None:
    """Give Hydra the defaults of all sections, to which configuration files refer by name."""
    store = ConfigStore.instance()
    store.store(name="sweep_settings", node=SWEEP)
    for verb in VERBS:
        store.store(name=f"{verb}_settings", node=defaults(verb_sections(verb)[0]))
    for group, sections in GROUPS.items():
        for name, cls in sections.nodes():
            store.store(group=group, name=name, node=defaults(cls))


def stated(verb: str, config: Mapping[str, Any]) -> dict[str, tuple[Statement, Any]]:
    """Return statement and type by dotted key of a verb's composed config, groups included."""
    found = {
        key: (statement, hint)
        for cls in reversed(verb_sections(verb))
        for key, statement, hint in statements(cls)
    }
    for name, group in GROUPS.items():
        section = config.get(name)
        if isinstance(section, Mapping) and (chosen := group.of(section)) is not None:
            for key, statement, hint in statements(chosen, f"{name}."):
                found[key] = (statement, hint)
    return found


def check_settings(verb: str, config: Mapping[str, Any]) -> None:
    """Raise for the first invalid value of a composed config, before anything slow is imported.

    Raises:
        UserError: Names the key and what is valid.
    """
    for cls in verb_sections(verb):
        cls.from_config(config)
    if verb == "bench":
        return  # its sections are benchmarks, one of them called like the group `model`
    for name, group in GROUPS.items():
        section = config.get(name)
        if isinstance(section, Mapping) and (chosen := group.of(section)) is not None:
            if group.by and group.by not in chosen.__dataclass_fields__:  # type: ignore[attr-defined]
                section = {key: value for key, value in section.items() if key != group.by}
            chosen.from_config(section)

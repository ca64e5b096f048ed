"""Composition of a verb's config from its file, the groups and the command line's overrides."""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from ecgfounder_train.app.sections import register, verb_sections
from ecgfounder_train.core.commands import program
from ecgfounder_train.core.config import CONFIGS, REQUIRED, defaults
from ecgfounder_train.core.errors import UserError, did_you_mean

_TEXT_KEYS = {
    *("run", "from_run", "compare", "average", "controls", "scratch"),
    *("shards", "runs", "ablations", "cache_dir", "cache", "checkpoint", "resume", "stream"),
    *("root", "out", "output", "input", "folder", "private", "secret", "save", "record", "records"),
    *("strips", "gallery", "table", "annotations", "file", "map", "pairs", "log_dir", "patients"),
    *("expect_split", "project"),
}
"""Last words of keys whose value is a name or a path: `run=2026_11_02` is no number."""

_ALIASES = {"resume": "resume.checkpoint"}
"""Short forms of keys: resume=PATH beside resume.allow=[...]."""


def compose_config(verb: str, overrides: list[str]) -> DictConfig:
    """Return `configs/<verb>.yaml` with the overrides applied.

    Raises:
        UserError: A key, group or choice is unknown (with the nearest valid names), a value cannot
            be parsed, or a required key has no value.
    """
    register()
    overrides = [quoted(override) for override in overrides]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        _check_overrides(verb, overrides)
        # Hydra takes any key that is also the name of a group for a choice of that group, though
        # this verb's config has it as a plain key (evaluate's split=val; prepare's split=official
        # is a group). Those are set after composing, as they would have been.
        own = _own_keys(verb)
        plain = [item for item in overrides if item.split("=")[0] in own]
        try:
            config = _compose(verb, [item for item in overrides if item not in plain])
            for item in plain:
                parsed = OverridesParser.create().parse_override(item)
                config[str(parsed.key_or_group)] = parsed.value()
            missing = sorted(set(_missing(config)) | _nulls(verb, config))
        except (HydraException, OmegaConfBaseException) as error:
            if "hydra/launcher/submitit" in str(error):
                raise UserError(
                    "hydra/launcher=submitit_slurm needs the package hydra-submitit-launcher, "
                    "which is not installed: pip install 'ecgfounder_train[cluster]'"
                ) from error
            raise UserError(first_line(error)) from error
    if missing:
        needed = " ".join(f"{key}=..." for key in missing)
        raise UserError(f"{program(verb)} needs {needed}. See: {program(verb)} --help")
    return config


def default_config(verb: str) -> dict[str, Any]:
    """Return a verb's config without overrides, required keys as "???"."""
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
        plain = OmegaConf.to_container(_hydra_compose(verb, []), resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def config_folders() -> list[Path]:
    """Return the folders of configuration files: the package's, then ./configs if it is another."""
    own = Path("configs")
    if own.is_dir() and own.resolve() != CONFIGS:
        return [CONFIGS, own.resolve()]
    return [CONFIGS]


def choices(group: str, verb: str) -> list[str]:
    """Return the choices of a group for a verb; an experiment belongs to the verb it names."""
    # The doctor examines what pretraining would do.
    verb = "pretrain" if verb == "doctor" else verb
    files = sorted(path for folder in config_folders() for path in (folder / group).glob("*.yaml"))
    if group == "experiment":
        started = re.compile(rf"scripts/{verb}\.py .*experiment=(\w+)\b")
        files = [path for path in files if path.stem in started.findall(path.read_text())]
    return [path.stem for path in files]


def group_defaults(verb: str) -> Iterator[tuple[str, str]]:
    """Yield the groups of a verb with their default choice, in the order of its file."""
    file = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{verb}.yaml"), resolve=False)
    assert isinstance(file, dict)
    for entry in file.get("defaults", []):
        if isinstance(entry, str):
            continue
        for key, choice in entry.items():
            group = str(key).removeprefix("override ").removeprefix("optional ")
            if (CONFIGS / group).is_dir():
                yield group, "null" if choice is None else str(choice)


def dotted_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted name of every key of a config, of sections too."""
    for key in map(str, config):
        yield prefix + key
        if not OmegaConf.is_missing(config, key) and isinstance(config._get_node(key), DictConfig):
            yield from dotted_keys(config[key], f"{prefix}{key}.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _hydra_compose(verb: str, overrides: list[str], **kwargs: Any) -> DictConfig:
    more = [f'hydra.searchpath=["file://{folder}"]' for folder in config_folders()[1:]]
    return compose(verb, overrides + more, **kwargs)


def quoted(override: str) -> str:
    """Return an override as Hydra reads it without changing its text.

    Hydra's grammar has ASCII letters only, and it takes `2026_11_02`, `1e3` or `true` for a number
    or a truth value also where the key is a name or a path.
    """
    key, equals, value = override.partition("=")
    key = _ALIASES.get(key, key)
    if not value or value[0] in "'\"{":
        return key + equals + value
    if _is_text(key.strip("+~"), value) or key in _ALIASES.values():
        opening, inner, closing = "", value, ""
        if value[0] == "[" and value[-1] == "]":
            opening, inner, closing = "[", value[1:-1], "]"
        if not set(inner) & set("'\"[]{}()"):
            items = [_quoted_scalar(item.strip()) for item in inner.split(",")]
            return key + equals + opening + ",".join(items) + closing
    if value.isascii() or value[0] == "[":
        return key + equals + value
    return key + equals + "'" + value.replace("'", "\\'") + "'"


def _is_text(key: str, value: str) -> bool:
    """Return whether a key's value is a name or a path."""
    if key == "report.strips":  # a number of ECGs; strips= of predict is a folder
        return False
    if key == "controls" and value[0] != "[":  # evaluate's is a switch, finetune's a list of runs
        return False
    return key.split(".")[-1] in _TEXT_KEYS


def _quoted_scalar(text: str) -> str:
    """Return a text in quotes if Hydra would take it for something else; null stays null."""
    if not text.isascii():
        return f"'{text}'"
    try:
        value = OverridesParser.create().parse_override(f"key={text}").value() if text else None
    except HydraException:
        return text
    return f"'{text}'" if isinstance(value, bool | int | float) else text


def _missing(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the keys without a value; not those that refer to one, as `private` to `shards`."""
    for key in map(str, config):
        if OmegaConf.is_missing(config, key):
            yield prefix + key
        elif isinstance(node := config._get_node(key), DictConfig):
            yield from _missing(node, f"{prefix}{key}.")


def _nulls(verb: str, config: DictConfig) -> set[str]:
    """Return the keys that must be given and were given as null."""
    required = {key for key, value in _defaults_of(verb).items() if value == REQUIRED}
    # Fine-tuning's checkpoint=null is an answer: fresh weights.
    return {key for key in required - {"checkpoint"} if OmegaConf.select(config, key) is None}


def _compose(verb: str, overrides: list[str]) -> DictConfig:
    """Compose; a verb with the key `launcher` gets there what `hydra/launcher=` chose."""
    if not any(item.startswith(("hydra/", "hydra.")) for item in overrides):
        return _hydra_compose(verb, overrides)
    config = _hydra_compose(verb, overrides, return_hydra_config=True)
    settings = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    with open_dict(config):
        del config["hydra"]
    if "launcher" not in config:
        raise UserError(
            f"{program(verb)} starts no jobs itself: give hydra/launcher= to "
            f"{program('ablate')}, or add --multirun."
        )
    assert isinstance(settings, dict)
    # Folder and name of the jobs refer to Hydra's own config, which a single run does not have.
    config["launcher"] = {key: value for key, value in settings.items() if "${" not in str(value)}
    return config


def _check_overrides(verb: str, overrides: list[str]) -> None:
    """Raise with the nearest valid names where Hydra would only say what it could not do."""
    groups = sorted({path.parent.name for f in config_folders() for path in f.glob("*/*.yaml")})
    own = _own_keys(verb)
    chosen, keyed = [], []
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
            if not parsed.key_or_group:
                raise HydraException("no key before the equals sign")
        except HydraException as error:
            raise UserError(
                f"Cannot read {override!r}; overrides look like key=value. Quote a value with "
                f"special characters twice: '{override.split('=')[0]}=\"...\"'. "
                f"({first_line(error)})"
            ) from error
        key = str(parsed.key_or_group)
        if key in groups and key not in own and parsed.package is None and "." not in key:
            _check_choice(key, parsed.value(), verb)
            chosen.append(override)
        elif key.startswith(("hydra/", "hydra.")):
            continue  # a group of Hydra's own, which it checks itself
        elif not (parsed.is_add() or parsed.is_force_add()):
            keyed.append((key, override))
    try:
        base = _hydra_compose(verb, chosen)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from error
    known = set(dotted_keys(base))
    for key, override in keyed:
        if key not in known:
            hint = did_you_mean(key, known | (set(groups) & set(base)))
            raise UserError(f"There is no key {key!r} (in {override!r}).{hint}")


@cache
def _defaults_of(verb: str) -> dict[str, Any]:
    """Return the verb's own top-level keys with their defaults, as its file and statements say."""
    file = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{verb}.yaml"), resolve=False)
    assert isinstance(file, dict)
    found = {str(key): value for key, value in file.items() if key != "defaults"}
    for cls in verb_sections(verb):
        found = defaults(cls) | found
    return found


def _own_keys(verb: str) -> set[str]:
    """Return the plain keys of a verb's config that share their name with a group."""
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    return {
        key
        for key, value in _defaults_of(verb).items()
        if key in folders and not isinstance(value, Mapping)
    }


def _check_choice(group: str, value: Any, verb: str) -> None:
    names = value if isinstance(value, list) else [value]
    valid = choices(group, verb)
    for name in names:
        if name is None or str(name) in valid:
            continue
        # Someone's own vocabulary is a key of the group, not a choice.
        if str(name).endswith(".csv"):
            raise UserError(
                f"There is no {group}={name}. For a file of your own give {group}.name={name}."
            )
        raise UserError(f"There is no {group}={name}." + did_you_mean(str(name), valid))

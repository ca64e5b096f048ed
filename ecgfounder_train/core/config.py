"""Settings sections: each key stated once, with default, unit, range or choices, comment, source.

A section is a frozen dataclass whose fields are made by `setting`. Parsing, range checks, Hydra's
defaults, `--help` and docs/settings.md are derived from these statements.
"""

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from ecgfounder_train.core.errors import UserError, did_you_mean

SectionT = TypeVar("SectionT")

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
"""Folder of the configuration files: inside the package in a wheel, beside it in a checkout."""

LARGEST_SEED = 2**63 - 1

REQUIRED = "???"
"""OmegaConf's mark of a key that must be given."""


def stated_in(file: str) -> dict[str, Any]:
    """Return the keys and values of a configuration file that states them itself."""
    content = yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key != "defaults"}


@dataclass(frozen=True)
class Statement:
    """What is stated about a key beside its type and default."""

    comment: str
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Mapping[str, str] | None = None
    source: str = ""
    composed: bool = True
    composed_as: str | None = None

    @property
    def range(self) -> str:
        """The valid range as a phrase such as "above 0 and at most 1", empty without a limit."""
        words = ("at least", "above", "at most", "below")
        limits = zip(words, self._limits, strict=True)
        return " and ".join(
            f"{word} {_number(limit)}" for word, limit in limits if limit is not None
        )

    @property
    def limits(self) -> str:
        """The valid range in symbols such as "> 0, <= 1", empty without a limit."""
        limits = zip((">=", ">", "<=", "<"), self._limits, strict=True)
        return ", ".join(f"{sign} {_number(limit)}" for sign, limit in limits if limit is not None)

    @property
    def _limits(self) -> tuple[float | None, ...]:
        return self.at_least, self.above, self.at_most, self.below

    @property
    def text(self) -> str:
        """Comment, choices, unit and source on one line, as `--help` shows them."""
        parts = [self.comment] if self.comment else []
        if self.choices:
            listed = " | ".join(
                f"{value} ({meaning})" if meaning else value
                for value, meaning in self.choices.items()
            )
            parts.append(listed)
        text = ": ".join(parts)
        if self.unit:
            text = f"{self.unit}; {text}"
        return f"{text} [{self.source}]" if self.source else text

    def check(self, key: str, value: Any, nullable: bool) -> None:
        """Raise unless a number is in range and a text is one of the choices.

        Raises:
            UserError: Names the key, the value and what is valid.
        """
        or_null = ", or null" if nullable else ""
        if self.choices is not None and isinstance(value, str | int) and value is not True:
            if str(value) not in self.choices:
                hint = did_you_mean(str(value), self.choices)
                raise UserError(f"{key}={value!r} is unknown.{hint}")
            return
        numbers = value if isinstance(value, list | tuple) else [value]
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            is_valid = (
                (self.at_least is None or number >= self.at_least)
                and (self.above is None or number > self.above)
                and (self.at_most is None or number <= self.at_most)
                and (self.below is None or number < self.below)
            )
            if not is_valid:
                raise UserError(f"{key}={value} must be {self.range}{or_null}.")


def setting(
    default: Any = MISSING,
    comment: str = "",
    *,
    unit: str = "",
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Mapping[str, str] | Sequence[str] | None = None,
    source: str = "",
    composed: bool = True,
    composed_as: str | None = None,
) -> Any:
    """Return a dataclass field that states a key.

    Args:
        default: Value without an override; without it the key is required.
        comment: What the key means, for `--help` and the docs.
        unit: Physical unit or what is counted, such as "s" or "samples".
        at_least: Smallest valid number.
        above: Valid numbers are above this one.
        at_most: Largest valid number.
        below: Valid numbers are below this one.
        choices: Valid texts, each with its meaning where the name does not say it.
        source: Where the default is from.
        composed: False leaves the key out of composed configs; it is given as `+section.key=`.
        composed_as: Value in composed configs where it differs from the default, as ${shards}.
    """
    if choices is not None and not isinstance(choices, Mapping):
        choices = dict.fromkeys(choices, "")
    statement = Statement(
        comment, unit, at_least, above, at_most, below, choices, source, composed, composed_as
    )
    metadata = {"statement": statement}
    if isinstance(default, list | dict):
        copied = default
        return field(default_factory=lambda: copied.copy(), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: type[Any], only: Sequence[str] = (), **changed: Any) -> Any:
    """Return a dataclass field that holds a section.

    Args:
        cls: The section.
        only: Keys that are composed and shown; empty: all.
        changed: Defaults that differ from the section's own.
    """
    metadata = {"statement": Statement(""), "section": cls, "only": only, "changed": changed}
    return field(default_factory=lambda: cls(**changed), metadata=metadata)


class Section:
    """Base of settings sections; a subclass is a frozen dataclass of `setting` fields.

    The class argument `name` is the section's key in the config, empty for top-level keys.
    """

    section_name: ClassVar[str] = ""
    composed_keys: ClassVar[Sequence[str]] = ()
    """Keys that composed configs have; empty: all."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.section_name = name

    def __post_init__(self) -> None:
        """Check every stated range and choice."""
        prefix = f"{self.section_name}." if self.section_name else ""
        hints = _hints(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            if (statement := item.metadata.get("statement")) is not None:
                nullable = type(None) in _alternatives(hints[item.name])
                statement.check(f"{prefix}{item.name}", getattr(self, item.name), nullable)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the section of a config, every value checked.

        Args:
            config: The section; for top-level keys the whole config, whose other keys are ignored.

        Raises:
            UserError: A key is unknown or missing, or a value is invalid.
        """
        if not cls.section_name:
            config = {item.name: config[item.name] for item in _fields(cls) if item.name in config}
        return parse_settings(cls, config, cls.section_name)


def parse_settings(cls: type[SectionT], config: Mapping[str, Any], prefix: str) -> SectionT:
    """Return `cls(**config)`, every value checked against its declared type.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{prefix}={config!r} must be a section with keys, as {prefix}.KEY=VALUE.")
    hints = _hints(cls)
    dotted = f"{prefix}." if prefix else ""
    known = {item.name: item for item in _fields(cls)}
    for key in config:
        if key not in known:
            raise UserError(f"Unknown key {dotted}{key}." + did_you_mean(str(key), known))
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in config:
            nested = item.metadata.get("section")
            if nested is not None and config[name] is not None:
                values[name] = parse_settings(nested, config[name], f"{dotted}{name}")
            else:
                values[name] = _checked(config[name], hints[name], f"{dotted}{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{dotted}{name} is missing; give it a value.")
    return cls(**values)


def defaults(cls: type[Any], only: Sequence[str] = (), **changed: Any) -> dict[str, Any]:
    """Return a section's keys and defaults as Hydra composes them, nested sections included."""
    tree: dict[str, Any] = {}
    only = only or getattr(cls, "composed_keys", ())
    for item in _fields(cls):
        statement: Statement = item.metadata["statement"]
        if not statement.composed or (only and item.name not in only):
            continue
        if (nested := item.metadata.get("section")) is not None:
            tree[item.name] = defaults(nested, item.metadata["only"], **item.metadata["changed"])
        elif item.name in changed:
            tree[item.name] = _plain(changed[item.name])
        elif statement.composed_as is not None:
            tree[item.name] = statement.composed_as
        elif item.default_factory is not MISSING:
            tree[item.name] = _plain(item.default_factory())
        else:
            tree[item.name] = REQUIRED if item.default is MISSING else _plain(item.default)
    return tree


def statements(
    cls: type[Any], prefix: str = "", only: Sequence[str] = ()
) -> Iterator[tuple[str, Statement, Any]]:
    """Yield dotted key, statement and type of every key of a section, nested sections included."""
    hints = _hints(cls)
    only = only or getattr(cls, "composed_keys", ())
    for item in _fields(cls):
        if only and item.name not in only:
            continue
        if (nested := item.metadata.get("section")) is not None:
            yield from statements(nested, f"{prefix}{item.name}.", item.metadata["only"])
        elif "statement" in item.metadata:
            yield f"{prefix}{item.name}", item.metadata["statement"], hints[item.name]


def type_name(hint: Any) -> str:
    """Return a type as the docs show it: `float or null`, `list`, `mapping`."""
    names = []
    for item in _alternatives(hint):
        origin = get_origin(item) or item
        if item is type(None):
            names.append("null")
        elif item in (bool, int, float, str):
            names.append(item.__name__)
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            names.append("mapping")
        elif isinstance(origin, type) and issubclass(origin, Sequence):
            names.append("list")
        else:
            names.append("any")
    return " or ".join(dict.fromkeys(names))


def takes_text_only(hint: Any) -> bool:
    """Return whether a key's values are texts, so that run=1e3 means the name "1e3"."""
    return set(_alternatives(hint)) <= {str, type(None)}


def _number(limit: float) -> str:
    return "2^63 - 1" if limit == LARGEST_SEED else f"{limit:g}"


def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _fields(cls: type[Any]) -> tuple["Field[Any]", ...]:
    assert is_dataclass(cls), cls
    return fields(cls)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _checked(value: Any, hint: Any, key: str) -> Any:
    allowed = _alternatives(hint)
    if Any in allowed:
        return value
    # bool is an int to Python, and a whole number is a valid float; nothing else is converted.
    if type(value) in allowed:
        return value
    if float in allowed and type(value) is int:
        return float(value)
    for item in allowed:
        origin = get_origin(item) or item
        if not isinstance(origin, type) or origin in (bool, int, float, str, type(None)):
            continue
        if issubclass(origin, Mapping) and isinstance(value, Mapping):
            return value
        if (
            issubclass(origin, Sequence)
            and isinstance(value, Sequence)
            and not isinstance(value, str)
        ):
            return tuple(value) if origin is tuple else value
    names = " or ".join(
        "null" if item is type(None) else getattr(item, "__name__", str(item)) for item in allowed
    )
    raise UserError(f"{key}={value!r} is not {names}. Correct the value on the command line.")

"""A config section as a frozen dataclass, with errors that name the key and the remedy."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ecgfounder_train.core.errors import UserError, did_you_mean

Settings = TypeVar("Settings")


def parse_settings(cls: type[Settings], config: Mapping[str, Any], section: str) -> Settings:
    """Return `cls(**config)`, its simple fields (bool, int, float, str, None) checked by type.

    Raises:
        UserError: A key is unknown or missing, or a value has the wrong type.
    """
    hints = get_type_hints(cls)
    prefix = f"{section}." if section else ""
    known = {item.name: item for item in fields(cls)}  # type: ignore[arg-type]
    for key in config:
        if key not in known:
            raise UserError(f"Unknown key {prefix}{key}." + did_you_mean(str(key), known))
    values: dict[str, Any] = {}
    for name, item in known.items():
        if name in config:
            values[name] = _checked(config[name], hints[name], f"{prefix}{name}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{prefix}{name} is missing; give it a value.")
    return cls(**values)


def _checked(value: Any, hint: Any, key: str) -> Any:
    allowed = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    simple = [item for item in allowed if item in (bool, int, float, str, type(None))]
    if len(simple) != len(allowed):
        return value
    # bool is an int to Python, and a whole number is a fine float; nothing else is converted.
    if type(value) in simple:
        return value
    if float in simple and type(value) is int:
        return float(value)
    names = " or ".join("null" if item is type(None) else item.__name__ for item in simple)
    raise UserError(f"{key}={value!r} is not {names}. Correct the value on the command line.")

"""The manual page of a verb, `--help`: header of its config file, then every key and group."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from ecgfounder_train.app.composition import choices, default_config, group_defaults
from ecgfounder_train.app.sections import stated, verb_sections
from ecgfounder_train.core.commands import as_started
from ecgfounder_train.core.config import CONFIGS, REQUIRED

WIDTH = 100
_COMMENT_COLUMN = 48

_KEY_LINE = re.compile(
    r"^(?P<indent> *)(?P<key>[A-Za-z_]\w*):(?: +(?P<value>[^#]*?))?(?: +# *(?P<comment>.*))?$"
)


def manual_page(verb: str) -> str:
    """Return the manual page of a verb, no line longer than `WIDTH`."""
    config = default_config(verb)
    comments = _comments(verb, config)
    groups = dict(group_defaults(verb))
    own = {key: value for key, value in config.items() if key not in groups}
    if len(sections := verb_sections(verb)) > 1:
        # The doctor's other keys are on the page of pretrain.
        named = {item.name for item in fields(sections[0])}  # type: ignore[arg-type]
        own = {key: value for key, value in own.items() if key in named or value == REQUIRED}
    leaves = list(_leaves(own, comments))
    leaves.sort(key=lambda leaf: leaf[1] != REQUIRED)
    keys = [_line(4, key, value, _comment(key, comments)) for key, value in leaves]
    listed = []
    for group, chosen in groups.items():
        valid = ", ".join(choices(group, verb))
        listed.append(_entry(4, f"{group}={chosen}", f"one of: {valid}"))
        section = config.get(group)
        if isinstance(section, Mapping):
            for key, value in _leaves(section, comments, f"{group}."):
                listed.append(_line(8, key, value, _comment(key, comments)))
    parts = [*_header(verb), "", "KEYS (key=value; ??? must be given)", *keys]
    if listed:
        parts += ["", "GROUPS (the default choice and its keys)", *listed]
    return as_started("\n".join(parts))


def shown(value: Any) -> str:
    """Return a value as it would be given on the command line."""
    if isinstance(value, float):
        # YAML reads 1e-05 as a text, 1.0e-05 as a number.
        text = f"{value:.15g}" if 1e-4 <= abs(value) < 1e9 or not value else f"{value:.10e}"
        text = re.sub(r"\.?0+e", "e", text)
        return text if "." in text or "e" in text or "n" in text else f"{text}.0"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _header(verb: str) -> list[str]:
    header = []
    for line in (CONFIGS / f"{verb}.yaml").read_text().splitlines():
        if not line.startswith("#"):
            break
        header.append(line.removeprefix("#").removeprefix(" "))
    return header


def _comment(key: str, comments: Mapping[str, str]) -> str:
    """Return the comment of a key, or that of the mapping it is in."""
    return comments.get(key) or comments.get(key.rpartition(".")[0], "")


def _line(indent: int, key: str, value: Any, comment: str) -> str:
    return _entry(indent, f"{key}={shown(value)}", comment)


def _entry(indent: int, item: str, comment: str) -> str:
    start = " " * indent + item
    if not comment:
        return start
    padding = " " * _COMMENT_COLUMN
    is_long = len(start) >= _COMMENT_COLUMN
    start = f"{start} \n{padding}" if is_long else start.ljust(_COMMENT_COLUMN)
    first, *rest = textwrap.wrap(
        comment, WIDTH - _COMMENT_COLUMN, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join([start + first, *(padding + line for line in rest)])


def _leaves(
    section: Mapping[str, Any], comments: Mapping[str, str], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys and values; a mapping with a comment of its own is one value."""
    for key, value in section.items():
        name = f"{prefix}{key}"
        is_section = (
            name not in comments
            or any(item.startswith(f"{name}.") for item in comments)
            or len(shown(value)) > WIDTH // 2
        )
        if isinstance(value, Mapping) and value and is_section:
            yield from _leaves(value, comments, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _comments(verb: str, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the comment of every key: its statement's, else the one in a configuration file."""
    found = dict(_file_comments(CONFIGS / f"{verb}.yaml"))
    for group, chosen in group_defaults(verb):
        path = CONFIGS / group / f"{chosen}.yaml"
        if path.is_file():
            found |= {f"{group}.{key}": text for key, text in _file_comments(path)}
    for key, (statement, _) in stated(verb, config).items():
        limits = f" ({statement.limits})" if statement.limits else ""
        found.setdefault(key, statement.text + limits)
    return found


def _file_comments(path: Path) -> Iterator[tuple[str, str]]:
    """Yield dotted key and comment of each leaf of a YAML file that has a comment."""
    parents: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        match = _KEY_LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        parents = [item for item in parents if item[0] < indent]
        name = ".".join([*(parent for _, parent in parents), match["key"]])
        if not (match["value"] or "").strip():
            parents.append((indent, match["key"]))
        elif match["comment"] and name.split(".")[0] != "defaults":
            yield name, match["comment"]

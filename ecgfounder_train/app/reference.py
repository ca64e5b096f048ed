"""docs/settings.md: every key of every verb and group, as a table made from the statements.

`python -m ecgfounder_train.app.reference` writes it; a test compares it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ecgfounder_train.app.manual import shown
from ecgfounder_train.app.sections import GROUPS, VERBS, verb_sections
from ecgfounder_train.core.config import Statement, defaults, statements, type_name

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

_HEAD = """# Settings

Every key that is stated in the package, by verb and by configuration group. Override a key as
`key=value`; `python scripts/VERB.py --help` shows the same keys with the defaults of the chosen
groups. A default of ??? must be given. The groups signal, source, split, task,
experiment and the verbs simulate and bench have their keys and comments in `configs`.

This page is made by `python -m ecgfounder_train.app.reference`.
"""


def reference_page() -> str:
    """Return the page."""
    lines = [_HEAD]
    for verb in sorted(VERBS):
        lines += [f"## {verb}", "", *_table(verb_sections(verb)[0]), ""]
    lines += ["# Groups", ""]
    for group in sorted(GROUPS):
        for name, cls in GROUPS[group].nodes():
            choice = name.removesuffix("settings").rstrip("_")
            title = f"{group}: {choice}" if choice else group
            lines += [f"## {title}", "", *_table(cls, f"{group}."), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(cls: type[Any], prefix: str = "") -> Iterator[str]:
    tree = defaults(cls)
    yield "| Key | Default | Type | Range or choices | Unit | Meaning | Source |"
    yield "|---|---|---|---|---|---|---|"
    for key, statement, hint in statements(cls, prefix):
        value: Any = tree
        for part in key.removeprefix(prefix).split("."):
            value = value.get(part) if isinstance(value, dict) and part in value else None
        default = shown(value) if statement.composed else "not set"
        cells = (
            *(f"`{key}`", f"`{default}`", type_name(hint), _valid(statement)),
            *(statement.unit, _meaning(statement), statement.source),
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _valid(statement: Statement) -> str:
    if statement.choices is not None:
        return ", ".join(f"`{choice}`" for choice in statement.choices)
    return statement.range


def _meaning(statement: Statement) -> str:
    explained = [f"{key}: {text}" for key, text in (statement.choices or {}).items() if text]
    return "; ".join([*([statement.comment] if statement.comment else []), *explained])


if __name__ == "__main__":
    PAGE.write_text(reference_page())

"""Commands that a message recommends: they run as they are printed."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

DEFAULT_PATHS = {"runs": "outputs/runs", "ablations": "outputs/ablations"}
"""Defaults of the `paths` section: a command needs to name other folders only."""

COMMANDS = Path(__file__).resolve().parents[1] / "commands"
"""Folder of the verbs' modules, which are scripts too."""

_PLAIN = re.compile(r"[\w./:@%+*?-]+( [\w./:@%+*?-]+)*")


def program(verb: str) -> str:
    """Return how this process's kind of start runs a verb: the script, or `ecgfounder VERB`."""
    return f"ecgfounder {verb}" if _is_installed_command() else f"python scripts/{verb}.py"


def script_of(verb: str) -> Path:
    """Return the file that runs a verb in a process of its own."""
    script = COMMANDS.parents[1] / "scripts" / f"{verb}.py"
    is_checkout = script.is_file() and not _is_installed_command()
    return script if is_checkout else COMMANDS / f"{verb}.py"


def as_started(text: str) -> str:
    """Return a message in which scripts/VERB.py is `ecgfounder VERB` where that was started."""
    if not _is_installed_command():
        return text
    return re.sub(r"(?:python )?scripts/([a-z]+)\.py", r"ecgfounder \1", text)


def _is_installed_command() -> bool:
    # `app.main` makes the verb's file in the package the script.
    start = Path(sys.argv[0])
    return start.stem == "ecgfounder" or start.parent.resolve() == COMMANDS


def command(
    script: str, keys: Mapping[str, object], paths: Mapping[str, object] | None = None
) -> str:
    """Return the command line that runs a verb, ready for a shell.

    Args:
        script: Name of the script, with its leading word if it takes one, such as "ablate report".
        keys: What to set, as `key=value`.
        paths: The `paths` of the current config; those that are not the
            default are named, as the next script would look elsewhere.
    """
    verb, *words = script.split()
    moved = {
        f"paths.{name}": place
        for name, place in (paths or {}).items()
        if name in DEFAULT_PATHS and str(place) != DEFAULT_PATHS[name]
    }
    settings = [f"{key}={_value(str(value))}" for key, value in {**keys, **moved}.items()]
    return shlex.join([*program(verb).split(), *words, *settings])


def _value(text: str) -> str:
    """Return a value as Hydra's grammar reads it back: commas, say, would make it a sweep."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"'{escaped}'"

"""Commands that a message recommends: they run as they are printed."""

import re
import shlex
from collections.abc import Mapping

DEFAULT_PATHS = {"runs": "outputs/runs", "ablations": "outputs/ablations"}
"""What `configs/paths/default.yaml` says: a command needs to name other places only."""

_PLAIN = re.compile(r"[\w./:@%+*?-]+( [\w./:@%+*?-]+)*")


def command(
    script: str, keys: Mapping[str, object], paths: Mapping[str, object] | None = None
) -> str:
    """Return a command line of one of our scripts, ready for a shell.

    Args:
        script: Name of the script, with its leading word if it takes one, such as "ablate report".
        keys: What to set, as `key=value`.
        paths: The `paths` of the config that this command goes on from; those that are not the
            default are named, as the next script would look elsewhere.
    """
    verb, *words = script.split()
    moved = {
        f"paths.{name}": place
        for name, place in (paths or {}).items()
        if name in DEFAULT_PATHS and str(place) != DEFAULT_PATHS[name]
    }
    settings = [f"{key}={_value(str(value))}" for key, value in {**keys, **moved}.items()]
    return shlex.join(["python", f"scripts/{verb}.py", *words, *settings])


def _value(text: str) -> str:
    """Return a value as Hydra's grammar reads it back: commas, say, would make it a sweep."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"'{escaped}'"

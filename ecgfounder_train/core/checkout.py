"""Which commit of the code runs."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from ecgfounder_train import __version__


def git_state() -> dict[str, Any] | None:
    """Return the commit of the checkout this package runs from, and whether it has changes.

    None where it is installed without one.
    """
    folder = Path(__file__).resolve().parents[2]
    git = shutil.which("git")
    if git is None or not (folder / ".git").exists():
        return None
    commit, changes = (
        subprocess.run(
            [git, "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
        for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    if commit.returncode:
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(changes.stdout.strip())}


def code_version() -> str:
    """Return the commit as a report shows it: 12 digits, `-dirty` if there are changes."""
    state = git_state()
    if state is None:
        return f"unknown (ecgfounder_train {__version__})"
    return str(state["commit"])[:12] + ("-dirty" if state["changed"] else "")

"""Start of a run: which checkpoint it continues from, whether its settings fit, its record.

The same command is idempotent: it continues a run that was interrupted, does nothing to one that is
complete, and never replaces work. What there is to continue is decided from everything in the run
directory, and every start is recorded in starts.jsonl.
"""

import json
import os
import shlex
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ecgfounder_train.core.checkout import git_state
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import PARTIAL_MARK, atomic_file
from ecgfounder_train.core.fingerprints import fingerprint, machine_fingerprint
from ecgfounder_train.core.logging import get_logger
from ecgfounder_train.core.run_directory import COMMAND_MARK, RunDirectory
from ecgfounder_train.settings.training import ResumeSettings
from ecgfounder_train.training.compatibility import (
    changed_settings,
    require_allowed,
    require_compatible,
)
from ecgfounder_train.training.run_state import RunMetadata
from ecgfounder_train.weights.checkpoint import load_checkpoint, newest_whole

log = get_logger(__name__)


@dataclass(frozen=True)
class Start:
    """How this start begins.

    Attributes:
        checkpoint: What it continues from; None: from scratch.
        is_own: The checkpoint is the run's, not one that a new run begins with.
        content: The checkpoint, loaded; None from scratch.
        changed: Settings that differ from the run's and were allowed, as (before, now).
        number: Of this start, counted from 1.
    """

    checkpoint: Path | None = None
    is_own: bool = False
    content: Mapping[str, Any] | None = None
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    number: int = 1


def plan_start(
    run: RunDirectory,
    resume: ResumeSettings,
    metadata: RunMetadata,
    config: Mapping[str, Any],
) -> Start:
    """Return how this start begins; nothing is written.

    Args:
        run: The run.
        resume: Where to begin, and what may differ.
        metadata: Of this start.
        config: The whole config of this start.

    Raises:
        UserError: The run cannot be continued in this way.
    """
    starts = read_starts(run)
    again = bool(config.get("overwrite")) and _is_same_command(run, config)
    path, is_own = _choose(run, "auto" if again else resume.checkpoint, starts)
    number = starts[-1]["start"] + 1 if starts else 1 + run.config_file.is_file()
    if path is None:
        return Start(number=number)
    checkpoint = load_checkpoint(path)
    require_compatible(checkpoint, metadata, path)
    changed = changed_settings(checkpoint, metadata)
    if is_own:
        require_allowed(changed, resume.allow, run.name)
    return Start(path, is_own, checkpoint, changed, number)


@contextmanager
def hold_run(
    run: RunDirectory, overwrite: bool, config: Mapping[str, Any], wait_s: float = 0.0
) -> Iterator[None]:
    """Hold the run for this job; with `overwrite` a run of this name is first moved aside.

    The command that has begun the run continues it: given twice, it must not move its own work.

    Raises:
        UserError: Another process trains in the run's folder.
    """
    with ExitStack() as stack:
        stack.enter_context(run.locked(wait_s))
        if overwrite and _holds_anything(run):
            if _is_same_command(run, config):
                log.info("Run %s was begun by this command: overwrite=true continues it.", run.name)
            else:
                target = _free_name(run)
                run.path.rename(target)
                log.info("Moved the former run %s aside, to %s.", run.name, target)
                stack.enter_context(run.locked())
        yield


def begins_from_scratch(
    run: RunDirectory, resume: ResumeSettings, overwrite: bool, config: Mapping[str, Any]
) -> bool:
    """Return whether a start with these settings begins without a checkpoint."""
    if overwrite and not _is_same_command(run, config):
        return True
    again = overwrite or resume.checkpoint == "auto"
    return resume.checkpoint == "none" or (again and newest_whole(run) is None)


def _free_name(run: RunDirectory) -> Path:
    number = 1
    while (target := run.path.with_name(f"{run.name}.replaced-{number}")).exists():
        number += 1
    return target


def _is_same_command(run: RunDirectory, config: Mapping[str, Any]) -> bool:
    """Return whether the run was begun with this very config."""
    starts = read_starts(run)
    return bool(starts) and starts[0]["config"] == json.loads(_as_json(config))


def _holds_anything(run: RunDirectory) -> bool:
    """Return whether there is more in a run's folder than the lock of this start."""
    return run.path.is_dir() and any(
        path.name not in (".lock", run.failure_file.name) for path in run.path.iterdir()
    )


def read_starts(run: RunDirectory) -> list[dict[str, Any]]:
    """Return the records of starts.jsonl, oldest first; a line cut by a kill is left out."""
    if not run.starts_file.is_file():
        return []
    starts = []
    lines = run.starts_file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            starts.append({**entry, "start": int(entry["start"])})
        except (ValueError, TypeError, KeyError) as error:
            if number < len(lines):
                raise UserError(
                    f"{run.starts_file} is damaged in line {number}. Restore the file, or delete "
                    "that line."
                ) from error
    return starts


def record_start(
    run: RunDirectory,
    start: Start,
    config: Mapping[str, Any],
    metadata: RunMetadata,
    resume: ResumeSettings,
) -> None:
    """Add this start to starts.jsonl and make its config that of config.yaml.

    The config of a run begun by a version without starts.jsonl becomes the first entry.
    """
    entries = []
    if start.number > 1 and not run.starts_file.is_file() and run.config_file.is_file():
        entries.append(_imported(run))
    position = {} if start.content is None else dict(start.content["position"])
    entries.append(
        {
            "start": start.number,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": _command(),
            "resume": resume.checkpoint,
            "checkpoint": start.checkpoint.name if start.checkpoint else None,
            "identity": _identity(start.checkpoint) if start.checkpoint else None,
            "position": position,
            "changed": {key: list(values) for key, values in start.changed.items()},
            "allowed": list(resume.allow),
            "config": config,
            "fingerprints": metadata.fingerprints,
            "versions": metadata.versions,
            "hardware": metadata.hardware,
            "machine": machine_fingerprint(),
            "git": git_state(),
        }
    )
    before = run.starts_file.read_bytes() if run.starts_file.is_file() else b""
    # A line that a kill has cut must not swallow the next one.
    separator = "" if not before or before.endswith(b"\n") else "\n"
    with open(run.starts_file, "a", encoding="utf-8") as handle:
        handle.write(separator + "".join(f"{_as_json(entry)}\n" for entry in entries))
        handle.flush()
        os.fsync(handle.fileno())
    with atomic_file(run.config_file, "w") as handle:
        if given := _command():
            handle.write(f"{COMMAND_MARK}{given}\n")
        handle.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))))


def _choose(
    run: RunDirectory, resume: str, starts: list[dict[str, Any]]
) -> tuple[Path | None, bool]:
    """Return the checkpoint to begin with and whether it is the run's own.

    Raises:
        UserError: `resume` would lose or mix work.
    """
    if resume == "none":
        if _holds_anything(run):
            raise UserError(
                f"Run {run.name!r} exists and resume=none begins new runs only. Choose another "
                "run=NAME, resume=auto to continue it, or overwrite=true to move it aside."
            )
        return None, False
    own = newest_whole(run)
    if own is None:
        _require_nothing_lost(run)
        return (None, False) if resume == "auto" else (Path(resume), False)
    if resume == "auto":
        return own, True
    path = Path(resume)
    begun = starts[0] if starts else {"resume": _imported_resume(run), "identity": None}
    if not (
        begun["resume"] == resume
        or (path.is_file() and path.resolve().parent == run.checkpoints.resolve())
        or (path.is_file() and begun["identity"] == _identity(path))
    ):
        raise UserError(
            f"Run {run.name!r} has checkpoints of its own and did not begin with {resume}. Choose "
            "another run=NAME to begin there, resume=auto to continue the run, or overwrite=true "
            "to move it aside."
        )
    if not path.is_file() or path.resolve() != own.resolve():
        log.info(
            "Run %s has a later checkpoint (%s) than resume=%s; it continues there. To train from "
            "the older one, give a new run=NAME.",
            run.name,
            own.name,
            resume,
        )
    return own, True


def _require_nothing_lost(run: RunDirectory) -> None:
    """Raise if a run without a whole checkpoint has trained: a fresh start would replace it."""
    files = [path.name for path in run.checkpoints.glob("*.ckpt*") if PARTIAL_MARK not in path.name]
    if files:
        what = f"none of its {len(files)} checkpoints is whole ({', '.join(sorted(files)[:3])})"
    elif seen := _samples_saved(run):
        what = f"it has trained on {seen:,} samples, but its checkpoints are missing"
    else:
        return
    raise UserError(
        f"Run {run.name!r} cannot be continued: {what} in {run.checkpoints}. Restore one, choose "
        "another run=NAME, or overwrite=true to move the run aside and start from scratch."
    )


def _samples_saved(run: RunDirectory) -> int:
    if not run.state_file.is_file():
        return 0
    return int(run.read_state().get("samples_seen") or 0)


def _identity(path: Path) -> str:
    """Return an id of a checkpoint's content, by its members' checksums; the path plays no part."""
    with zipfile.ZipFile(path) as archive:
        members = [(item.filename.split("/", 1)[-1], item.CRC) for item in archive.infolist()]
    return fingerprint(members)


def _imported(run: RunDirectory) -> dict[str, Any]:
    """Return the entry of a run that a version without starts.jsonl has begun."""
    with run.config_file.open(encoding="utf-8") as handle:
        first = handle.readline().strip()
    return {
        "start": 1,
        "command": first.removeprefix(COMMAND_MARK) if first.startswith(COMMAND_MARK) else "",
        "resume": _imported_resume(run),
        "identity": None,
        "config": run.read_config(),
    }


def _imported_resume(run: RunDirectory) -> str:
    resume = run.read_config().get("resume", "auto") if run.config_file.is_file() else "auto"
    return str(resume.get("checkpoint", "auto") if isinstance(resume, Mapping) else resume)


def _command() -> str:
    """Return the command line of this process, to be given again from the same folder.

    Empty where a run was started from Python.
    """
    script = Path(sys.argv[0])
    if script.name == "ecgfounder":
        return shlex.join([script.name, *sys.argv[1:]])
    if script.stem not in ("pretrain", "finetune"):
        return ""
    return shlex.join(["python", f"scripts/{script.name}", *sys.argv[1:]])


def _as_json(value: Any) -> str:
    return json.dumps(value, default=str)

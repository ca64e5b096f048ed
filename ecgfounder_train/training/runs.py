"""List of runs below a folder with state, progress and the command that continues each."""

import csv
import fcntl
import io
import json
import os
import shlex
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ecgfounder_train.core.commands import DEFAULT_PATHS
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.fingerprints import machine_fingerprint
from ecgfounder_train.core.run_directory import COMMAND_MARK
from ecgfounder_train.core.untrusted import error_kind

FORMATS = ("table", "csv", "json")
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class RunStatus:
    """One run.

    Attributes:
        run: Its name.
        state: `training`; `complete`; `stopped` on request; `failed` by an error; `stale`: its last
            state is training, but no process holds it; `damaged`: its files cannot be read.
        samples_seen: Samples trained on, by metrics.csv.
        progress: Share of the budget.
        monitor: What `best` measures.
        best: Its best value so far.
        ecg_per_s: Speed over the last logged steps.
        written: When anything of it was last written (UTC).
        model: Name of the network.
        reason: Why it failed.
        resume: The command that continues it; empty where it is complete.
    """

    run: str
    state: str
    samples_seen: int
    total_samples: int
    progress: float
    monitor: str
    best: float | None
    ecg_per_s: float | None
    written: str
    model: str
    reason: str
    resume: str


def list_runs(folder: Path | str, stale_after_s: float = 1800.0) -> list[RunStatus]:
    """Return the runs below `folder`, the last written first.

    Args:
        folder: `paths.runs`.
        stale_after_s: A run of another machine that has not written for so long is dead: whether
            its lock is held is certain on its own machine only.

    Raises:
        UserError: There is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {folder}. Give the folder of your runs: paths.runs=DIR."
        )
    found = sorted(path.parent for path in folder.glob("*/config.yaml"))
    # Files of a cluster's file system answer slowly, and many at a time.
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda path: _status_or_damage(path, stale_after_s), found))
    return sorted(runs, key=lambda item: item.written, reverse=True)


def show(runs: Iterable[RunStatus], kind: str) -> str:
    """Return runs as a table for a terminal, as CSV or as JSON.

    Raises:
        UserError: `kind` is not one of `FORMATS`.
    """
    rows = [asdict(run) for run in runs]
    if kind == "json":
        return json.dumps(rows, indent=2)
    if kind == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, [item.name for item in fields(RunStatus)])
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip()
    if kind != "table":
        raise UserError(f"format={kind!r} is unknown." + did_you_mean(kind, FORMATS))
    return _table(rows)


def _status_or_damage(path: Path, stale_after_s: float) -> RunStatus:
    """Return a run's status; one whose files hold nonsense must not hide the others."""
    try:
        return _status(path, stale_after_s)
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = f"run.json or metrics.csv is damaged ({error_kind(error)})"
        return RunStatus(
            run=path.name, state="damaged", samples_seen=0, total_samples=0, progress=0.0,
            monitor="", best=None, ecg_per_s=None, written="", model="", reason=reason, resume="",
        )  # fmt: skip


def _status(path: Path, stale_after_s: float) -> RunStatus:
    state = _read_state(path / "run.json")
    last = _last_row(path / "metrics.csv")
    files = [path / name for name in ("run.json", "metrics.csv", "config.yaml")]
    written_s = max((_mtime(file) for file in files), default=0.0)
    # Between two checkpoints only metrics.csv is up to date.
    seen = max(int(state.get("samples_seen", 0)), int(last.get("samples_seen") or 0))
    total = int(state.get("total_samples", 0))
    name = _state_name(path, state, written_s, stale_after_s)
    best = state.get("best", {})
    return RunStatus(
        run=path.name,
        state=name,
        samples_seen=seen,
        total_samples=total,
        # A budget smaller than one step is overshot.
        progress=min(round(seen / total, 4), 1.0) if total else 0.0,
        monitor=str(best.get("monitor", "")),
        best=best.get("value"),
        ecg_per_s=float(last["ecg_per_s"]) if last.get("ecg_per_s") else None,
        written=datetime.fromtimestamp(written_s, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        model=str(state.get("spec", {}).get("model", {}).get("name", "")),
        reason=_reason(path) if name == "failed" else "",
        resume="" if name == "complete" else _command(path),
    )


def _state_name(
    path: Path, state: Mapping[str, Any], written_s: float, stale_after_s: float
) -> str:
    said = str(state.get("state", "training"))
    if said != "training":
        return {"finished": "complete"}.get(said, said)
    if _is_locked(path / ".lock"):
        return "training"
    if state.get("machine") == machine_fingerprint():
        return "stale"
    # A lock of another machine may be invisible here.
    return "training" if time.time() - written_s < stale_after_s else "stale"


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _read_state(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_row(path: Path) -> dict[str, str]:
    """Return the last whole row of metrics.csv, with the last speed that was logged."""
    try:
        with open(path, "rb") as handle:
            header = handle.readline().decode(errors="replace").strip().split(",")
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(size - _TAIL_BYTES, 0))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    rows = [line.split(",") for line in lines]
    whole = [
        dict(zip(header, row, strict=True))
        for row in rows
        if len(row) == len(header) and row[0].isdigit()
    ]
    if not whole:
        return {}
    fast = [row for row in whole if row.get("ecg_per_s")]
    return whole[-1] | ({"ecg_per_s": fast[-1]["ecg_per_s"]} if fast else {})


def _reason(path: Path) -> str:
    try:
        content = json.loads((path / "failure.json").read_text())
        return f"rank {content['rank']}: {content['reason']}"
    except (OSError, ValueError, KeyError):
        return ""


def _command(path: Path) -> str:
    """Return the command that continues the run in this folder, whatever it was called before."""
    with open(path / "config.yaml", encoding="utf-8", errors="replace") as handle:
        first = handle.readline().strip()
    if not first.startswith(COMMAND_MARK):
        return f"python scripts/pretrain.py run={path.name} and the settings in {path}/config.yaml"
    words, kept = shlex.split(first.removeprefix(COMMAND_MARK)), []
    runs = Path(DEFAULT_PATHS["runs"])
    for word in words:
        key, _, value = word.partition("=")
        runs = Path(value) if key == "paths.runs" else runs
        # A run that exists is continued, neither refused nor moved aside.
        if key in ("overwrite", "--multirun", "-m") or word == "resume=none":
            continue
        if key == "paths.runs" and Path(value).resolve() != path.parent.resolve():
            continue
        kept.append(f"run={path.name}" if key == "run" else word)
    if not any(word.startswith("run=") for word in kept):
        kept.append(f"run={path.name}")
    if runs.resolve() != path.parent.resolve():
        kept.append(f"paths.runs={path.parent}")
    return shlex.join(kept)


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "There are no runs yet. Start one with scripts/pretrain.py."
    shown = [
        (
            row["run"],
            row["state"],
            f"{row['progress']:.1%}",
            "" if row["best"] is None else f"{row['best']:.4f} {row['monitor'].split('/')[-1]}",
            "" if row["ecg_per_s"] is None else f"{row['ecg_per_s']:,.0f}",
            row["written"],
            row["model"],
        )
        for row in rows
    ]
    head = ("run", "state", "progress", "best", "ECG/s", "last written (UTC)", "model")
    widths = [max(len(line[column]) for line in [head, *shown]) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *shown]
    ]
    for row in rows:
        if row["reason"]:
            lines.append(f"\n{row['run']} failed: {row['reason']}")
        if row["state"] in ("stopped", "failed", "stale"):
            lines.append(f"\ncontinue {row['run']}:\n    {row['resume']}")
    return "\n".join(lines)

"""Checkpoints: plain containers in one file, written atomically, verified before they are loaded.

What must not change without raising `FORMAT_VERSION`: the keys of the dictionary (DESIGN.md). A
checkpoint loads with `torch.load(weights_only=True)`; reading one never executes anything.
"""

import os
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import PARTIAL_MARK, atomic_file, sweep_partial_files
from ecgfounder_train.core.run_directory import RunDirectory

FORMAT_VERSION = 1
REQUIRED = ("format_version", "model", "optimizer", "position", "spec", "config", "fingerprints")
BEST = "best.ckpt"
_STEP_PATTERN = "step-*.ckpt"
_OF_TORCH = {"data.pkl", "version", "byteorder"}
"""Members by which a zip archive is known as one of torch's; a flipped bit hides one of them."""


def step_name(global_step: int) -> str:
    """Return the file name of the checkpoint after `global_step` optimizer steps."""
    return f"step-{global_step:09d}.ckpt"


def save_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that `path` is the old file or the whole new one, never a part.

    Raises:
        UserError: The disk is full, or what was written does not read back.
    """
    with atomic_file(path) as handle:
        try:
            torch.save(checkpoint, handle)
        except RuntimeError as error:
            # torch reports a failed write as RuntimeError from its zip writer, which speaks of
            # positions in the file; what the disk reported is its context.
            said = error.__context__
            reason = said.strerror if isinstance(said, OSError) else None
            free = shutil.disk_usage(path.parent).free
            raise UserError(
                f"Cannot write the checkpoint {path.name}: {reason or _short(error)} "
                f"({free / 1e6:,.1f} MB are free in {path.parent}). The checkpoints before it are "
                "untouched. Free space there, then run the same command again: it continues from "
                "the newest."
            ) from error
        handle.flush()
        os.fsync(handle.fileno())
        if reason := damage(Path(handle.name)):
            raise UserError(
                f"The checkpoint {path.name} did not read back after writing ({reason}). The "
                "checkpoints before it are untouched. Check the disk."
            )


def damage(path: Path) -> str | None:
    """Return why a checkpoint file cannot be trusted, None when every byte checks out.

    torch's files are zip archives with a CRC-32 of every member, so a cut or flipped byte shows.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            is_torchs = _OF_TORCH & {name.rpartition("/")[2] for name in archive.namelist()}
            if is_torchs and (reason := _unlike_torch(archive, path.stat().st_size)):
                return reason
            bad = archive.testzip()
        if is_torchs:
            # It looks at more of the directory than Python does, and would refuse the file.
            torch._C.PyTorchFileReader(str(path))
    except Exception as error:  # a flipped bit may also claim encryption or compression
        return f"not a whole file: {_short(error)}"
    return f"member {bad} has a wrong checksum" if bad else None


def _unlike_torch(archive: zipfile.ZipFile, file_bytes: int) -> str | None:
    """Return why a zip archive is not one that torch writes: stored members that do not overlap.

    Compressed or overlapping members state any size, which a reader would allocate.
    """
    members = archive.infolist()
    if packed := next((item for item in members if item.compress_type), None):
        return f"its member {packed.filename[:60]!r} is compressed"
    if sum(item.file_size for item in members) > file_bytes:
        return "its members are larger than the file"
    return None


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return the checkpoint in `path`, tensors on the CPU.

    Raises:
        UserError: The file is absent, damaged, foreign, or of another format version.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}.")
    if reason := damage(path):
        raise UserError(
            f"The checkpoint {path} is damaged ({reason}). Use an older one of the same folder, or "
            "checkpoint=last / resume=auto, which skip damaged files."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"{path} is not a checkpoint of this project (weights_only load refused it: "
            f"{_short(error)})."
        ) from error
    return check_contents(checkpoint, path)


def check_contents(checkpoint: Any, path: Path) -> dict[str, Any]:
    """Return a file's content if it is a checkpoint of this project and version.

    Raises:
        UserError: It is not.
    """
    known = checkpoint if isinstance(checkpoint, dict) else {}
    # First the version: another one may have other keys.
    if known.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        writer = (known.get("versions") or {}).get("ecgfounder_train")
        raise UserError(
            f"{path} has checkpoint format {known['format_version']}, this version of "
            f"ecgfounder_train reads {FORMAT_VERSION}. Use the version that wrote it"
            f"{f' ({writer})' if writer else ''}, or train from scratch with another run=NAME."
        )
    missing = [key for key in REQUIRED if key not in known]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project: no {', '.join(missing)}.")
    contents: dict[str, Any] = checkpoint
    return contents


def newest_whole(run: RunDirectory) -> Path | None:
    """Return a run's newest undamaged checkpoint; damaged ones are named and skipped.

    `best.ckpt` is a whole checkpoint too, and the newest where step files were damaged or deleted.
    """
    newest = None
    for path in sorted(run.checkpoints.glob(_STEP_PATTERN), reverse=True):
        reason = damage(path)
        if reason is None:
            newest = path
            break
        warnings.warn(f"Skipping the damaged checkpoint {path.name}: {reason}.", stacklevel=2)
    best = run.checkpoints / BEST
    steps = _global_step(best)
    is_newer = steps >= 0 and (newest is None or step_name(steps) > newest.name)
    return best if is_newer and damage(best) is None else newest


def _global_step(path: Path) -> int:
    """Return the optimizer steps of a checkpoint, -1 where the file says none."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(checkpoint["position"]["global_step"])
    except Exception:  # a damaged or foreign file raises anything
        return -1


def find_checkpoint(run: RunDirectory, which: str) -> Path:
    """Return the file that `checkpoint=best|last|PATH` means.

    Raises:
        UserError: There is none.
    """
    if which == "last":
        path = newest_whole(run)
        if path is None:
            raise UserError(f"Run {run.name!r} has no whole checkpoint yet.")
        return path
    if which == "best":
        if not (run.checkpoints / BEST).is_file():
            raise UserError(
                f"Run {run.name!r} has no best checkpoint yet (none was validated). "
                "Use checkpoint=last."
            )
        return run.checkpoints / BEST
    if not Path(which).is_file():
        raise UserError(f"checkpoint={which!r} is neither best, last nor a file.")
    return Path(which)


def resolve_checkpoint(which: str, runs: Path | str, run_name: str | None) -> Path:
    """Return the file that `checkpoint=` means, with or without `run=NAME`.

    Raises:
        UserError: There is no such run or file, or best or last is asked for without a run.
    """
    if run_name is not None:
        return find_checkpoint(RunDirectory.existing(runs, run_name), which)
    if which in ("best", "last"):
        raise UserError(f"checkpoint={which} is that of a run: add run=NAME, or give a path.")
    if "://" in which:
        raise UserError(
            f"checkpoint={which} is a URL. Download the file and give its path "
            "(for the hub: hf download ORG/NAME)."
        )
    return Path(which)


class CheckpointFolder:
    """The checkpoints of a run: the newest `keep`, and the best by validation.

    Args:
        run: The run's directory.
        keep: How many step checkpoints stay; older ones go only after a newer one is whole.
    """

    def __init__(self, run: RunDirectory, keep: int) -> None:
        self.run = run
        self.keep = keep

    def save(self, checkpoint: dict[str, Any], is_best: bool) -> Path:
        """Write a step checkpoint, point `best.ckpt` to it if it is the best, drop old ones."""
        sweep_partial_files(self.run.checkpoints)
        path = self.run.checkpoints / step_name(checkpoint["position"]["global_step"])
        save_checkpoint(checkpoint, path)
        if is_best:
            self.link_best(path)
        for old in sorted(self.run.checkpoints.glob(_STEP_PATTERN), reverse=True)[self.keep :]:
            old.unlink()
        return path

    def link_best(self, path: Path) -> None:
        """Make `best.ckpt` the same file as `path`."""
        if path.name != BEST:
            _link(path, self.run.checkpoints / BEST)

    def set_aside_newer_than(self, global_step: int) -> list[str]:
        """Rename damaged checkpoints beyond the one a run resumes from; return their names."""
        found = [
            path
            for path in sorted(self.run.checkpoints.glob(_STEP_PATTERN))
            if path.name > step_name(global_step)
        ]
        for path in found:
            path.rename(path.with_name(f"{path.name}.damaged"))
        return [path.name for path in found]

    def keep_best_as(self, name: str) -> None:
        """Give `best.ckpt` a second name, under which it stays when another one is the best."""
        best, kept = self.run.checkpoints / BEST, self.run.checkpoints / name
        if best.is_file() and not kept.exists():
            _link(best, kept)


def _link(path: Path, target: Path) -> None:
    """Make `target` the same file as `path`, or a copy of it."""
    partial = target.with_name(f"{target.name}{PARTIAL_MARK}{os.getpid()}")
    try:
        os.link(path, partial)
    except OSError:
        # Some cluster file systems have no hard links.
        with atomic_file(target) as handle:
            handle.write(path.read_bytes())
        return
    partial.replace(target)


def _short(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__

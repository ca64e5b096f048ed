"""Rebuild of single shards from the archive, verified against the manifest."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sweep_partial_files
from ecgfounder_train.core.private_files import open_private_folder, private_folder
from ecgfounder_train.core.progress import ProgressMeter
from ecgfounder_train.records.profiles import SignalProfile
from ecgfounder_train.shards.build import PLACE_NAME, only_build
from ecgfounder_train.shards.increments import PLAN_NAME, read_plan
from ecgfounder_train.shards.manifest import Manifest, read_manifest
from ecgfounder_train.shards.verify import verify
from ecgfounder_train.shards.writer import RecordPlace, build_shard

DAMAGED = "damaged"


def rebuild(
    folder: Path | str,
    which: str | Sequence[int | str],
    *,
    private: Path | str | None = None,
    root: Path | str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Rebuild shards, each only if its SHA-256 is the manifest's, and return their names.

    Args:
        folder: What prepare wrote; its manifest must be whole.
        which: Numbers or names of shards, or `damaged` for all that `verify` finds fault with.
        private: Folder with the plan; ``<folder>.private`` by default.
        root: The archive, where it has moved since.
        storage_options: Of a URL.

    Raises:
        UserError: No such shard, no plan, or the archive gives other bytes now; then the old file
            stays.
    """
    folder = Path(folder)
    private = Path(private) if private is not None else private_folder(folder)
    manifest = read_manifest(folder)
    numbers = _numbers(folder, manifest, which, private)
    plan = read_plan(open_private_folder(private))
    if plan is None or [name for name, _, _ in plan.shards] != [e.name for e in manifest.shards]:
        raise UserError(
            f"{private / PLAN_NAME}, the plan of the shards, is missing or of other "
            "shards. Give private=DIR, or delete the damaged shards and run prepare again."
        )
    place = RecordPlace(_root(private, root), dict(storage_options or {}))
    profile = SignalProfile.from_config(manifest.signal)
    planned = plan.planned()
    done = []
    with only_build(private), ProgressMeter("Rebuilding", len(numbers), "shards") as meter:
        sweep_partial_files(folder)
        for number in numbers:
            entry = manifest.shards[number]
            build_shard(
                planned[number],
                folder,
                place,
                profile,
                len(manifest.labels),
                manifest.sites,
                due_sha256=entry.sha256,
            )
            done.append(entry.name)
            meter.update(len(done))
    return tuple(done)


def _numbers(
    folder: Path, manifest: Manifest, which: str | Sequence[int | str], private: Path
) -> list[int]:
    names = [entry.name for entry in manifest.shards]
    if which == DAMAGED:
        faulty = {file for file, _ in verify(folder, private=private).findings}
        return [number for number, name in enumerate(names) if name in faulty]
    numbers = []
    for item in [which] if isinstance(which, str) or not isinstance(which, Sequence) else which:
        if item in names:
            numbers.append(names.index(str(item)))
        elif type(item) is int and 0 <= item < len(names):
            numbers.append(item)
        else:
            raise UserError(
                f"rebuild={item} is not a shard of {folder}: give numbers from 0 to "
                f"{len(names) - 1}, names such as {names[0]}, or rebuild={DAMAGED}."
            )
    return numbers


def _root(private: Path, root: Path | str | None) -> Path | str:
    if root is not None:
        return root
    path = private / PLACE_NAME
    try:
        noted = json.loads(path.read_text(encoding="utf-8"))
        if noted.get("own_reader"):
            raise UserError(
                "These records are not WFDB files, and only their source can read them: delete the "
                "damaged shards and run prepare again; it makes what is missing."
            )
        return str(noted["root"])
    except (OSError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} does not say where the archive is ({type(error).__name__}). Give root=DIR."
        ) from error

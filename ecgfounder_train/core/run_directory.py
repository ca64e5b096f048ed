"""The folder of one training run: its files, and the lock of the process that may write them.

outputs/runs/NAME/
    config.yaml       the resolved configuration of the last start; its command is the first line
    starts.jsonl      every start: command, configuration, versions, position, changed settings
    run.json          state, progress, versions, fingerprints (no host name, no user, no path)
    metrics.csv       one row per logged step and validation, with the number of its start
    wandb_id          id of the run at Weights & Biases, made once
    failure.json      why the last start failed, if it did (may name paths: stays on this machine)
    checkpoints/      step-000000123.ckpt (newest kept), best.ckpt
    evaluation/SPLIT/ predictions.parquet, labels.csv, report.html
"""

import errno
import fcntl
import json
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.logging import get_logger

log = get_logger(__name__)

COMMAND_MARK = "# "
"""Begins the first line of config.yaml, the command that wrote it."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Answers of a file system that was mounted without locks, as some Lustre are."""
_MAX_BYTES = 16 << 20
_CONFIG_TYPES: dict[str, type] = {"shards": str, "data": dict, "task": dict, "paths": dict}
"""Sections that other commands read, and what they must be."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class RunDirectory:
    """Paths inside the folder of a run.

    A run is found by its name alone: under SLURM every rank and every requeued job uses the same
    folder, so neither a clock nor a job id may be part of it.
    """

    path: Path

    @classmethod
    def of(cls, runs: Path | str, name: str) -> "RunDirectory":
        """Return the directory of the run `name`, which need not exist.

        Raises:
            UserError: The name cannot be a folder's name.
        """
        if not _NAME.fullmatch(str(name)):
            raise UserError(
                f"run={name!r} cannot name a folder. Use letters, digits, '.', '_' and '-'."
            )
        return cls(Path(runs) / str(name))

    @classmethod
    def existing(cls, runs: Path | str, name: str) -> "RunDirectory":
        """Return the directory of a run that was started before.

        Raises:
            UserError: There is no such run.
        """
        run = cls.of(runs, name)
        if not run.config_file.is_file():
            names = [path.parent.name for path in Path(runs).glob("*/config.yaml")]
            raise UserError(
                f"There is no run {name!r} in {runs}."
                + (did_you_mean(name, names) if names else " Train one with scripts/pretrain.py.")
            )
        return run

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def state_file(self) -> Path:
        """What the run is, and how far."""
        return self.path / "run.json"

    @property
    def failure_file(self) -> Path:
        """Why the last start failed; absent where it did not."""
        return self.path / "failure.json"

    @property
    def metrics_file(self) -> Path:
        """Metrics of training and validation."""
        return self.path / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def evaluation(self, name: str) -> Path:
        """Folder of the evaluation on a split or an external data set."""
        return self.path / "evaluation" / name

    def read_config(self, required: Iterable[str] = ()) -> dict[str, Any]:
        """Return config.yaml as plain containers.

        Args:
            required: Sections that must be there.

        Raises:
            UserError: The file is missing, damaged, or not what a start writes; the file is named.
        """
        content = self._read(self.config_file, lambda text: yaml.load(text, _PlainLoader))
        wrong = [key for key in required if key not in content]
        wrong += [
            key
            for key, kind in _CONFIG_TYPES.items()
            if content.get(key) is not None and not isinstance(content[key], kind)
        ]
        if wrong:
            raise self._damaged(self.config_file, f"{wrong[0]}={content.get(wrong[0])!r:.60}")
        return content

    def read_state(self, required: Iterable[str] = ("state",)) -> dict[str, Any]:
        """Return run.json.

        Args:
            required: Keys that must be there.

        Raises:
            UserError: The file is missing, damaged, or not what a start writes; the file is named.
        """
        content = self._read(self.state_file, json.loads)
        if missing := [key for key in required if key not in content]:
            raise self._damaged(self.state_file, f"no {', '.join(missing)}")
        return content

    def _read(self, path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
            content = parse(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise self._damaged(path, first[0]) from error
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise self._damaged(path, f"it holds {type(content).__name__}, not sections")
        return content

    def _damaged(self, path: Path, why: str) -> UserError:
        return UserError(
            f"{path} is damaged ({why}). Restore it from a backup; or give one of the run's "
            f"checkpoints by its path (checkpoint={self.checkpoints}/...) in place of "
            f"run={self.name}."
        )

    @property
    def starts_file(self) -> Path:
        """One line for each start."""
        return self.path / "starts.jsonl"

    @property
    def wandb_id_file(self) -> Path:
        """Id of the run at Weights & Biases."""
        return self.path / "wandb_id"

    def write_state(self, state: Mapping[str, Any]) -> None:
        """Replace run.json."""
        with atomic_file(self.state_file, "w") as handle:
            json.dump(state, handle, indent=2)

    @contextmanager
    def locked(self, wait_s: float = 0.0) -> Iterator[None]:
        """Hold the run for this job; the lock goes with the process, however it ends.

        Args:
            wait_s: Longest time to wait for another process to end.

        Raises:
            UserError: Another process trains in this folder.
        """
        is_new = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        deadline = time.monotonic() + wait_s
        is_reported = False
        try:
            while not _flock(descriptor):
                if time.monotonic() >= deadline:
                    raise UserError(
                        f"Run {self.name!r} is being trained by another process. Wait for it, stop "
                        "it, or choose another run=NAME."
                    )
                if not is_reported:
                    is_reported = True
                    log.info(
                        "Run %s is still held by an earlier start of it; waiting up to %.0f s for "
                        "its end.",
                        self.name,
                        wait_s,
                    )
                time.sleep(1)
            yield
        except BaseException:
            if is_new:
                self._remove_if_empty()
            raise
        finally:
            os.close(descriptor)

    def _remove_if_empty(self) -> None:
        """Leave nothing of a start that was refused before it wrote anything."""
        if {path.name for path in self.path.iterdir()} == {".lock"}:
            (self.path / ".lock").unlink()
            with suppress(OSError):
                self.path.rmdir()


class _PlainLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without aliases: nested ones stand for more values than the memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), which no configuration of a run has")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _flock(descriptor: int) -> bool:
    """Lock an open file unless another process has; return whether this one holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            "the file system of the run directory has no locks: make sure that no other job "
            "trains in it",
            stacklevel=2,
        )
    return True

"""Checkpoint writer: in the training loop, or on a background thread while training continues.

On a thread nothing of the promises changes: the state is copied at the step's end, and only a file
that was written, synced and read back takes its name. A run that is killed meanwhile continues
from the checkpoint before.
"""

import threading
from collections.abc import Mapping
from typing import Any

import torch

from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.weights.checkpoint import CheckpointFolder


class CheckpointWriter:
    """Writes a run's checkpoints, and run.json after each.

    Args:
        run: The run's directory.
        keep: How many step checkpoints stay.
        background: Write on a thread. At most one checkpoint is under way, so a second one that
            comes too early waits for the first.
    """

    def __init__(self, run: RunDirectory, keep: int, background: bool) -> None:
        self.run = run
        self.folder = CheckpointFolder(run, keep)
        self.background = background
        self._memory: dict[str, torch.Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, checkpoint: dict[str, Any], is_best: bool, state: Mapping[str, Any]) -> None:
        """Save a checkpoint; on a thread it is copied before this returns.

        Args:
            checkpoint: Plain containers; its tensors may change as soon as this returns.
            is_best: Whether `best.ckpt` becomes the same file.
            state: Becomes run.json when the checkpoint is whole.

        Raises:
            UserError: This one, or on a thread the one before, could not be written.
        """
        if not self.background:
            self._write(checkpoint, is_best, state)
            return
        self.wait()
        copied = self._copied(checkpoint, "")
        # The copies of a GPU's tensors are under way until here.
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()
        # A daemon: a second Ctrl-C ends the process without waiting for the disk.
        self._thread = threading.Thread(
            target=self._write_guarded, args=(copied, is_best, state), name="save", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is under way.

        Raises:
            UserError: The last checkpoint could not be written; raised once.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @property
    def error(self) -> Exception | None:
        """Error of the last checkpoint, if it could not be written."""
        return self._error

    def _write(self, checkpoint: dict[str, Any], is_best: bool, state: Mapping[str, Any]) -> None:
        self.folder.save(checkpoint, is_best)
        self.run.write_state(state)

    def _write_guarded(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except Exception as error:  # reported at the next step, on the training thread
            self._error = error

    def _copied(self, value: Any, where: str) -> Any:
        """Return a copy on the CPU, in memory that every checkpoint uses again."""
        if isinstance(value, torch.Tensor):
            return self._copied_tensor(value, where)
        if isinstance(value, dict):
            return {key: self._copied(item, f"{where}/{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = (self._copied(item, f"{where}/{place}") for place, item in enumerate(value))
            return type(value)(items)
        return value

    def _copied_tensor(self, tensor: torch.Tensor, where: str) -> torch.Tensor:
        memory = self._memory.get(where)
        if memory is None or memory.shape != tensor.shape or memory.dtype != tensor.dtype:
            # Page-locked memory takes a GPU's tensors at the full speed of the bus.
            memory = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._memory[where] = memory
        return memory.copy_(tensor.detach(), non_blocking=True)

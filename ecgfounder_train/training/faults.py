"""Steps with a NaN, infinite or exploding gradient: detection, skipping, suspected samples."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from ecgfounder_train.settings.training import FaultSettings

NUM_SUSPECTS = 8
FLOAT16_LIMIT = 40
"""Halved so often in a row, a loss scale of 65,536 is below 1e-7."""


def is_bad(settings: FaultSettings, grad_norm: torch.Tensor) -> torch.Tensor:
    """Return whether a step with this gradient norm must not be taken, on its device."""
    bad = ~torch.isfinite(grad_norm)
    limit = settings.max_grad_norm
    return bad if limit is None else bad | (grad_norm > limit)


class Suspects:
    """The samples with the largest losses of the first bad step, on the device until asked for.

    Nothing here waits for the device: what a step noted is kept or dropped by a select.
    """

    def __init__(self) -> None:
        self._noted: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._rows: torch.Tensor | None = None
        self._losses: torch.Tensor | None = None

    def note(self, rows: torch.Tensor, elements: torch.Tensor) -> None:
        """Note a micro-batch of the step.

        Shape:
            rows: (B,) index rows; elements: (B, num_labels) losses.
        """
        losses = elements.detach().float().sum(1)
        # No number is the worst loss of all.
        losses = torch.nan_to_num(losses, nan=torch.inf, posinf=torch.inf, neginf=torch.inf)
        self._noted.append((rows, torch.where(rows >= 0, losses, -torch.inf)))

    def settle(self, bad: torch.Tensor) -> None:
        """End a step: keep its worst samples if it was bad, forget the step else."""
        if not self._noted:
            return
        rows = torch.cat([rows for rows, _ in self._noted])
        losses = torch.cat([losses for _, losses in self._noted])
        self._noted = []
        count = min(NUM_SUSPECTS, len(rows))
        worst, places = losses.topk(count)
        padded_rows = rows.new_full((NUM_SUSPECTS,), -1)
        padded_losses = losses.new_full((NUM_SUSPECTS,), -torch.inf)
        padded_rows[:count], padded_losses[:count] = rows[places], worst
        if self._rows is None or self._losses is None:
            self._rows = torch.where(bad, padded_rows, -1)
            self._losses = torch.where(bad, padded_losses, -torch.inf)
        else:
            take = bad & (self._rows < 0).all()
            self._rows = torch.where(take, padded_rows, self._rows)
            self._losses = torch.where(take, padded_losses, self._losses)

    def worst(self) -> list[tuple[int, float]]:
        """Return (index row, loss) over all ranks, worst first, and forget them.

        A collective: every rank calls it, or none.
        """
        found: list[tuple[int, float]] = []
        if self._rows is not None and self._losses is not None:
            pairs = zip(self._rows.tolist(), self._losses.tolist(), strict=True)
            found = [(row, loss) for row, loss in pairs if row >= 0]
        self._rows = self._losses = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            gathered: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(gathered, found)
            found = [pair for pairs in gathered for pair in pairs]
        found.sort(key=lambda pair: -pair[1])
        if found and found[0][1] == torch.inf:
            # Where some losses are NaN, the others are not suspects.
            found = [pair for pair in found if pair[1] == torch.inf]
        return found[:NUM_SUSPECTS]


class Float16Overflow:
    """Counts float16 steps in a row whose gradient was not finite, on the device until asked for.

    The loss scale begins at 65,536 and is halved at every such step: some at the start are normal,
    but a gradient that is NaN at any scale would be skipped for ever.
    """

    def __init__(self) -> None:
        self._count: torch.Tensor | None = None

    def note(self, grad_norm: torch.Tensor) -> None:
        """Note the gradient norm of a step."""
        before = torch.zeros_like(grad_norm) if self._count is None else self._count
        self._count = torch.where(torch.isfinite(grad_norm), torch.zeros_like(before), before + 1)

    @property
    def in_a_row(self) -> int:
        """Steps without a finite gradient up to now; waits for the device."""
        return 0 if self._count is None else int(self._count)

    @property
    def is_persistent(self) -> bool:
        """Whether lowering the loss scale does not help."""
        return self.in_a_row > FLOAT16_LIMIT


@dataclass
class FaultCounts:
    """What a run has left out so far, over all ranks; part of its checkpoints."""

    quarantined: int = 0
    """Slots whose sample could not be read."""
    skipped_steps: int = 0
    skipped_in_a_row: int = 0

    def summary(self) -> str:
        """Return a sentence, empty where nothing was left out."""
        parts = []
        if self.quarantined:
            parts.append(f"{self.quarantined:,} unreadable samples were left out (quarantined)")
        if self.skipped_steps:
            parts.append(f"{self.skipped_steps:,} steps with a bad gradient were skipped")
        return "; ".join(parts) + "." if parts else ""

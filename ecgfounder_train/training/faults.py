"""Steps that must not be taken: a loss that explodes or is no number, and whose fault it was."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.settings import parse_settings

ON_BAD_LOSS = ("stop", "skip")
NUM_SUSPECTS = 8


@dataclass(frozen=True)
class FaultSettings:
    """What happens to a step whose gradient is NaN, infinite or too large.

    The gradient decides, because it is summed over ranks before anyone looks at it: all ranks see
    the same number and do the same, and a loss that is NaN on one of them is NaN in all gradients.

    Args:
        on_bad_loss: `stop` ends the run; `skip` leaves weights, moments and weight average alone,
            counts the step and goes on.
        max_grad_norm: A total gradient norm above this is bad too (before clipping); None: only
            NaN and infinity are.
        max_skipped: So many bad steps in a row end the run all the same.
    """

    on_bad_loss: str = "stop"
    max_grad_norm: float | None = None
    max_skipped: int = 20

    def __post_init__(self) -> None:
        if self.on_bad_loss not in ON_BAD_LOSS:
            raise UserError(
                f"faults.on_bad_loss={self.on_bad_loss!r} is unknown."
                + did_you_mean(self.on_bad_loss, ON_BAD_LOSS)
            )
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(f"faults.max_grad_norm={self.max_grad_norm} must be above 0, or null.")
        if self.max_skipped < 0:
            raise UserError(f"faults.max_skipped={self.max_skipped} is negative.")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FaultSettings":
        """Return the settings of a config's `faults` section."""
        return parse_settings(cls, config, "faults")

    def is_bad(self, grad_norm: torch.Tensor) -> torch.Tensor:
        """Return whether a step with this gradient norm must not be taken, on its device."""
        bad = ~torch.isfinite(grad_norm)
        return bad if self.max_grad_norm is None else bad | (grad_norm > self.max_grad_norm)


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
            # Where some losses are no numbers, the others are not to blame.
            found = [pair for pair in found if pair[1] == torch.inf]
        return found[:NUM_SUSPECTS]


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

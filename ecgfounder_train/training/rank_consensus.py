"""What the ranks of a job decide together: stop, save, end by an error.

Clocks differ by moments, a signal may reach one rank only, and so may a damaged sample; ranks that
disagreed would wait for each other for ever. One small reduction per step decides all of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.distributed

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.training.signals import SIGNALS, StopRequest


@dataclass(frozen=True)
class Agreement:
    """What all ranks do now.

    Attributes:
        stop: A rank was asked to stop.
        save: Rank 0 wants a checkpoint.
        quarantined: Samples that could not be read since the last agreement, over all ranks.
    """

    stop: bool
    save: bool
    quarantined: int


class RankConsensus:
    """Collects what one rank met and agrees with the others about it.

    Args:
        stop: Filled by signals; on agreement the signal of any rank becomes that of all.
    """

    def __init__(self, stop: StopRequest) -> None:
        self.stop = stop
        self._error: str | None = None
        self._quarantined = 0

    def note_batch(self, batch: Mapping[str, Any]) -> None:
        """Note the samples of a batch that could not be read."""
        self._quarantined += len(batch.get("quarantined", ()))
        self._error = self._error or batch.get("error")

    def note_error(self, error: BaseException) -> None:
        """Note an error of this rank; the first one counts."""
        self._error = self._error or str(error)

    def agree(self, trainer: L.Trainer, save: bool = False, bad_step: bool = False) -> Agreement:
        """Return what all ranks do; a collective.

        Raises:
            UserError: A rank could not read its samples, or rank 0 not write its checkpoint.
        """
        quarantined, self._quarantined = self._quarantined, 0
        if trainer.world_size == 1:
            if self._error is not None:
                raise UserError(self._error)
            return Agreement(self.stop.signal is not None, save, quarantined)
        save = save and trainer.is_global_zero
        asked = [self.stop.signal is number for number in SIGNALS]
        flags = torch.tensor(
            [save, self._error is not None, bad_step, quarantined, *asked], dtype=torch.int64
        ).to(trainer.strategy.root_device)
        torch.distributed.all_reduce(flags)
        saves, failures, bad_steps, quarantined, *stops = flags.tolist()
        if self.stop.signal is None:
            # All ranks end in the same way, whichever of them was asked to.
            self.stop.signal = next((n for n, k in zip(SIGNALS, stops, strict=True) if k), None)
        if failures:
            self._raise_together(trainer)
        assert bad_steps in (0, trainer.world_size), "ranks disagree about a gradient they share"
        # Not this rank's own flag: a signal that came after the flags were sent counts next time.
        return Agreement(any(stops), saves > 0, quarantined)

    def _raise_together(self, trainer: L.Trainer) -> None:
        """Raise on every rank what one or more of them met.

        A rank that ended alone would leave the others waiting for it in their next collective.
        """
        errors: list[str | None] = [None] * trainer.world_size
        torch.distributed.all_gather_object(errors, self._error)
        rank = next(rank for rank, error in enumerate(errors) if error)
        raise UserError(self._error or f"Rank {rank} cannot continue: {errors[rank]}")

"""State of a run: position, scores, best validation, counts; saved and restored as one.

`RunState` holds everything that training changes beside weights and optimizer, and is restored from
a checkpoint in one place. `RunMetadata` is what a checkpoint states about its run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.loader.epoch_plan import Position
from ecgfounder_train.training.faults import FaultCounts
from ecgfounder_train.weights.checkpoint import FORMAT_VERSION


@dataclass(frozen=True)
class RunMetadata:
    """What a checkpoint states about its run beside the state."""

    spec: dict[str, Any]
    config: dict[str, Any]
    fingerprints: dict[str, str]
    versions: dict[str, str]
    hardware: dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """What a validation's score measures; scores of two measures do not compare.

    Attributes:
        monitor: Column of metrics.csv.
        loss: The loss's settings where the loss is monitored; empty otherwise.
        label_group: Group of labels that the score covers; empty: all labels.
        data: Fingerprint of the shards.
    """

    monitor: str
    loss: str
    label_group: str
    data: str

    @classmethod
    def of(
        cls, monitor: str, loss: Mapping[str, Any], label_group: str | None, data: str
    ) -> "Measure":
        """Return the measure of a monitor under a loss's settings."""
        stored = fingerprint(dict(loss)) if monitor == "val/loss" else ""
        return cls(monitor, stored, label_group or "", data)

    def difference(self, other: "Measure") -> str:
        """Return what differs from another measure, as `key was A, is B`."""
        pairs = [(name, getattr(other, name), getattr(self, name)) for name in vars(self)]
        return "; ".join(f"{name} was {a!r}, is {b!r}" for name, a, b in pairs if a != b)


@dataclass(frozen=True)
class Best:
    """The best validation so far.

    Attributes:
        value: Its score in the monitor's own direction; None: no validation yet.
        samples_seen: Where it was taken.
        validation: Its number, counted from 1.
    """

    value: float | None = None
    samples_seen: int = 0
    validation: int = 0


@dataclass
class Window:
    """Sums since the last logged row; part of the checkpoint, so that rows survive a kill."""

    loss: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    batches: int = 0


@dataclass
class RunState:
    """Everything that training changes beside weights and optimizer.

    Attributes:
        position: Epochs and slots consumed.
        optimizer_steps: Steps taken, skipped ones included.
        scores: What each validation brought, higher is better, oldest first.
        best: The best of them.
        measure: What they measure; None in checkpoints of versions that did not store it.
        faults: What was left out.
        window: Sums since the last logged row.
        rate_factor: What a plateau schedule had reached when `scores` was begun from scratch.
        validation_pending: A validation is due at this position: it was stopped by a signal.
    """

    position: Position = field(default_factory=Position)
    optimizer_steps: int = 0
    scores: tuple[float, ...] = ()
    best: Best = field(default_factory=Best)
    measure: Measure | None = None
    faults: FaultCounts = field(default_factory=FaultCounts)
    window: Window = field(default_factory=Window)
    rate_factor: float = 1.0
    validation_pending: bool = False

    @property
    def validations_since_best(self) -> int:
        """Validations without improvement; 0 before the first defined score."""
        return 0 if self.best.value is None else len(self.scores) - self.best.validation

    def score(self, value: float, samples_seen: int, sign: int) -> bool:
        """Count a validation and return whether it is the best so far; NaN never is.

        Args:
            value: The monitored column.
            samples_seen: Where the run is.
            sign: 1 where higher is better, else -1.
        """
        self.scores = (*self.scores, sign * value)
        best = self.best.value
        if value != value or (best is not None and sign * value <= sign * best):
            return False
        self.best = Best(value, samples_seen, len(self.scores))
        return True

    def restart_scores(self, measure: Measure, rate_factor: float) -> None:
        """Begin scores, best and patience from scratch, as validations measure something else."""
        self.scores, self.best, self.measure = (), Best(), measure
        self.rate_factor = rate_factor

    @classmethod
    def restored(cls, checkpoint: Mapping[str, Any], accumulate: int) -> "RunState":
        """Return the state in a checkpoint, for steps of `accumulate` micro-batches."""
        position, window = checkpoint["position"], checkpoint["window"]
        # Checkpoints of earlier versions lack what has a default here.
        scores = tuple(checkpoint.get("scores", ()))
        stored = dict(checkpoint["best"])
        measure = stored.pop("measure", None)
        if stored["value"] is not None and "validation" not in stored:
            defined = [score for score in scores if score == score]
            stored["validation"] = scores.index(max(defined)) + 1 if defined else 0
        # A step counts once, of however many micro-batches it was made.
        before = window.get("accumulate", accumulate)
        return cls(
            position=Position(position["epoch"], position["slots"]),
            optimizer_steps=position["global_step"],
            scores=scores,
            best=Best(**stored),
            measure=Measure(**measure) if measure else _measure_of(checkpoint),
            faults=FaultCounts(**checkpoint.get("faults", {})),
            window=Window(
                # Exactly as it was where nothing changed.
                torch.tensor(window["loss"], dtype=torch.float64) * (accumulate / before),
                window["batches"] * accumulate // before,
            ),
            rate_factor=float(checkpoint.get("rate_factor", 1.0)),
            validation_pending=bool(checkpoint.get("validation_pending", False)),
        )

    def best_as_dict(self) -> dict[str, Any]:
        """Return the best validation with what it measures."""
        return asdict(self.best) | {"measure": asdict(self.measure) if self.measure else None}

    def to_checkpoint(
        self, samples_seen: int, accumulate: int, window_loss: float
    ) -> dict[str, Any]:
        """Return the part of a checkpoint that `restored` reads."""
        return {
            "position": {
                "epoch": self.position.epoch,
                "slots": self.position.slots,
                "global_step": self.optimizer_steps,
                "samples_seen": samples_seen,
            },
            "best": self.best_as_dict(),
            "scores": list(self.scores),
            "rate_factor": self.rate_factor,
            "validation_pending": self.validation_pending,
            "faults": asdict(self.faults),
            "window": {
                "loss": window_loss,
                "batches": self.window.batches,
                "accumulate": accumulate,
            },
        }


def _measure_of(checkpoint: Mapping[str, Any]) -> Measure | None:
    """Return the measure of a checkpoint that does not store it, by its config."""
    config = checkpoint["config"]
    section = config.get("checkpoint")
    if not isinstance(section, Mapping) or not section.get("monitor"):
        return None
    group = config.get("budget", {}).get("validate_group")
    data = checkpoint["fingerprints"].get("data", "")
    return Measure.of(section["monitor"], config.get("loss", {}), group, data)


def checkpoint_content(
    state: Mapping[str, Any],
    metadata: RunMetadata,
    *,
    model: Mapping[str, Any],
    ema: Mapping[str, Any] | None,
    optimizer: Mapping[str, Any],
    precision: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Return a checkpoint: plain containers and tensors alone.

    Args:
        state: Of `RunState.to_checkpoint`.
        metadata: Of the run.
        model: State of the network.
        ema: State of the weight average, if there is one.
        optimizer: State of the optimizer.
        precision: State of the precision plugin (float16's loss scale).
        seed: The run's seed.
    """
    return {
        "format_version": FORMAT_VERSION,
        "model": model,
        "ema": ema,
        "optimizer": optimizer,
        "precision": precision,
        # Every draw is keyed by (seed, epoch, slot): the seed is the whole state.
        "rng": {"kind": "counter", "seed": seed},
        **state,
        **vars(metadata),
    }

"""Weights on a split or an external set: predictions, decisions and controls."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.evaluation.averaging import averaged
from ecgfounder_train.evaluation.controls import untrained_probe
from ecgfounder_train.evaluation.pooling import pool_windows
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.evaluation.settings import EvaluationSettings
from ecgfounder_train.evaluation.subjects import FileSubject, RunSubject, Subject, open_target
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.weights.decisions import (
    Decisions,
    decisions_file,
    read_decisions,
    reading_of,
)
from ecgfounder_train.weights.trained_model import TrainedModel


@dataclass
class Evaluated:
    """Predictions, one row per record, with sentences and rows for the report."""

    predictions: Predictions
    windows: Predictions
    remarks: list[str] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)


class Evaluation:
    """Weights, averaged with those of further runs if asked for, on a split or an external set.

    Args:
        settings: What is evaluated, and how.
        name: Of the run; None: `checkpoint` is a path of weights without a run.

    Raises:
        UserError: There is no such run or file, or settings contradict each other.
    """

    def __init__(self, settings: EvaluationSettings, name: str | None) -> None:
        self.settings = settings
        self.subject: Subject = RunSubject(name, settings) if name else FileSubject(settings)
        self.members = [self.subject, *self._open_others()]
        self.target = open_target(self.subject, settings)

    def _open_others(self) -> list[Subject]:
        """Return the further runs whose logits are averaged with this one's."""
        own, names = self.subject.name, self.settings.average
        if len({own, *names}) <= len(names):
            raise UserError(
                f"average={list(names)}: each run counts once, and run={own} is among them."
            )
        others = [RunSubject(name, self.settings) for name in names]
        for other in others:
            if other.trained.labels != self.subject.trained.labels:
                raise UserError(
                    f"Run {other.name!r} has other labels than {own!r}; only runs with the same "
                    "labels can be averaged."
                )
        return list(others)

    @property
    def called(self) -> str:
        """Name of the averaged weights."""
        return " + ".join(member.name for member in self.members)

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        settings = self.settings
        parts = [
            self.target.name,
            "" if settings.crops == 1 else f"{settings.crops}crops",
            str(settings.group or "").replace(":", "_"),
            self._average_name,
        ]
        return self.subject.home / "-".join(filter(None, parts))

    @property
    def _average_name(self) -> str:
        others = [member.name for member in self.members[1:]]
        return "_".join(["mean_with", *others]) if others else ""

    def evaluate(self) -> Evaluated:
        """Return the predictions, after records and patients were checked against training.

        Raises:
            UserError: The data do not fit the model, or were trained on.
        """
        on_records = self.target.check()
        overlap = self.subject.overlap_with(self.target)
        results = [self._predict(member.trained, member.name) for member in self.members]
        evaluated = results[0]
        evaluated.provenance = self.subject.provenance() | evaluated.provenance
        evaluated.remarks += overlap
        if len(results) > 1:
            self._average(evaluated, results)
        evaluated.remarks += on_records
        return evaluated

    def _average(self, evaluated: Evaluated, results: list[Evaluated]) -> None:
        """Replace the first member's logits by the mean over all members."""
        own = self.subject.training
        for member in self.members[1:]:
            if member.training is None or own is None or member.training.folder != own.folder:
                evaluated.remarks += member.overlap_with(self.target)
            evaluated.provenance |= named(member.name, member.provenance())
        evaluated.predictions = averaged([result.predictions for result in results])
        evaluated.windows = averaged([result.windows for result in results])
        evaluated.remarks.append(
            f"Each logit is the mean of {len(results)} networks' "
            f"({', '.join(member.name for member in self.members)})."
        )

    def _predict(self, trained: TrainedModel, name: str) -> Evaluated:
        found, pool = self.target.predict(trained, name), self.settings.pool
        pooled = pool_windows(found.windows, pool)
        remarks = list(found.remarks)
        if len(pooled) < len(found.windows):
            remarks.append(
                f"{len(found.windows):,} windows were pooled to {len(pooled):,} records by the "
                f"{pool} of their logits."
            )
        return Evaluated(pooled, found.windows, remarks, dict(found.provenance))

    def decisions(self, evaluated: Evaluated) -> Decisions | None:
        """Return thresholds and calibration, fitted on validation the first time they are needed.

        Weights without a run have what was kept beside them, if logits are read as for its fit.
        None where the training shards are gone or without a validation split. A validation split
        that was just evaluated is not predicted again.
        """
        settings, subject = self.settings, self.subject
        if isinstance(subject, FileSubject):
            kept = subject.trained.decisions
            return kept if kept and kept.suits(settings.pool, settings.crops) else None
        checksums = [sha256_file(member.checkpoint) for member in self.members]
        checksum = checksums[0] if len(checksums) == 1 else fingerprint(checksums)
        reading = reading_of(settings.pool, settings.crops, settings.calibration)
        stored = read_decisions(self.decisions_file, checksum, reading)
        if stored is not None:
            return stored
        if subject.training is None or not len(subject.training.rows("val")):
            return None
        validation = (
            evaluated.predictions if self.target.is_validation else self._predict_validation()
        )
        fitted = Decisions.fit(validation, checksum, reading, settings.calibration)
        fitted.write(self.decisions_file)
        return fitted

    def _predict_validation(self) -> Predictions:
        how, shards = self.settings, self.subject.training
        assert shards is not None
        windows = [
            predict_split(
                member.trained, shards, "val", how.device, how.batch_size, member.name, how.crops
            )
            for member in self.members
        ]
        return pool_windows(averaged(windows), how.pool)

    @property
    def decisions_file(self) -> Path:
        """Thresholds and calibration beside the checkpoint; an average has its own."""
        path = decisions_file(self.subject.checkpoint)
        average = self._average_name
        return path.with_name(f"{average}.{path.name}") if average else path

    def controls(self) -> dict[str, Predictions]:
        """Return what the controls predict for the same records; weights without a run have none.

        Raises:
            UserError: The training shards are absent, or a control was trained on these records.
        """
        controls: dict[str, Predictions] = {}
        settings, subject = self.settings, self.subject
        if isinstance(subject, FileSubject):
            return controls
        if settings.controls:
            if subject.training is None:
                raise UserError(
                    "controls=true fits a probe on the run's training shards, which are not here. "
                    "Restore them, or leave the control out."
                )
            probe = untrained_probe(
                subject.trained, subject.training, settings.device, settings.batch_size
            )
            controls["untrained + probe"] = self._predict(probe, "untrained").predictions
        if settings.scratch:
            other = RunSubject(settings.scratch, settings)
            other.overlap_with(self.target)
            controls["from scratch"] = self._predict(other.trained, other.name).predictions
        return controls


def named(name: str, rows: Mapping[str, str]) -> dict[str, str]:
    """Return rows of a provenance table marked with a run; libraries' versions are left out."""
    return {
        f"{name}: {key}": value for key, value in rows.items() if not key.startswith("version of")
    }

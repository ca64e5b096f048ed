"""Weights that are evaluated: those of a run, or a file of weights without one."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.private_files import private_folder
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.settings import EvaluationSettings
from ecgfounder_train.evaluation.targets import ExternalTarget, SplitTarget, Target
from ecgfounder_train.loader.cache import open_shards
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.shards.overlap import check_overlap
from ecgfounder_train.weights.bundle import DESCRIPTION_FILE, WEIGHTS_FILE, weights_file
from ecgfounder_train.weights.checkpoint import find_checkpoint, resolve_checkpoint
from ecgfounder_train.weights.trained_model import TrainedModel


class Subject(ABC):
    """Weights that are evaluated, with what is known of their training.

    Attributes:
        name: In reports: the run, or the file or folder of the weights.
        checkpoint: Their file or folder.
        trained: The network.
        stated: The checkpoint as a report states it.
        home: Folder of their evaluations.
        private: Folder of keys that belong to their evaluations.
    """

    kind: ClassVar[str]
    metrics_file: Path | None = None

    def __init__(
        self, name: str, checkpoint: Path, stated: str, home: Path, settings: EvaluationSettings
    ) -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.stated = stated
        self.settings = settings
        self.home = Path(settings.out) if settings.out else home
        self.private = self.home / "evaluation.private"
        self.trained = TrainedModel.load(checkpoint, settings.device)

    @property
    @abstractmethod
    def training(self) -> ShardSet | None:
        """The shards they were trained on, None where those are gone or hold no answers."""

    @abstractmethod
    def overlap_with(self, target: Target) -> list[str]:
        """Return what was checked; refuse records or patients of the training split.

        Raises:
            UserError: Some of them are among these.
        """

    def secret_file(self) -> Path:
        """Return the key file of an external set's pseudonyms."""
        if self.settings.secret:
            return Path(self.settings.secret)
        if self.training is not None:
            beside = private_folder(self.training.folder) / "secret.key"
            # The training shards' own secret makes keys that compare with theirs.
            if beside.is_file():
                return beside
        return self.private / "secret.key"

    def provenance(self) -> dict[str, str]:
        """Return the rows of a provenance table."""
        trained = self.trained
        seen = f"{trained.samples_seen:,} samples seen"
        return {
            "checkpoint": f"{self.stated} ({seen if trained.samples_seen else 'samples unknown'})",
            "sha256 of the checkpoint": sha256_file(weights_file(self.checkpoint)),
            "model": trained.model_name,
            "signal profile": f"{trained.profile.name}, {trained.profile.fs:g} Hz, "
            f"leads {trained.lead_choice}",
            **{f"version of {name}": value for name, value in trained.versions.items()},
        }


class RunSubject(Subject):
    """The weights of a run.

    Raises:
        UserError: There is no such run or checkpoint, or it was fine-tuned and shards are asked.
    """

    kind = "Run"

    def __init__(self, name: str, settings: EvaluationSettings) -> None:
        self.run = RunDirectory.existing(settings.runs, name)
        checkpoint = find_checkpoint(self.run, settings.checkpoint)
        home = self.run.path / "evaluation"
        super().__init__(self.run.name, checkpoint, settings.checkpoint, home, settings)
        self.private = self.run.path / "evaluation.private"
        if self.run.metrics_file.is_file():
            self.metrics_file = self.run.metrics_file
        if self.task is not None and not settings.external:
            raise UserError(
                f"Run {name!r} was fine-tuned on the task {self.task!r}, whose answers are in its "
                "table and not in shards. Its test split was reported by finetune.py: "
                f"{self.run.evaluation('test') / 'report.html'}. Here it is evaluated on external "
                "sets alone (experiment=eval_*)."
            )

    @cached_property
    def task(self) -> str | None:
        """The task a fine-tuned run was trained for, None of a pretraining."""
        task = self.run.read_config().get("task")
        return str(task["name"]) if task else None

    @cached_property
    def training(self) -> ShardSet | None:
        """The shards it was trained on, None where those are gone or hold no answers."""
        if self.task is not None:
            return None
        config = self.run.read_config(required=("shards", "data"))
        try:
            return open_shards(
                config["shards"],
                self.settings.cache_dir or config["data"].get("cache_dir"),
                self.settings.cache_bytes,
            )
        except UserError:
            if self.settings.needs_training_shards:
                raise
            return None

    def overlap_with(self, target: Target) -> list[str]:
        """Return what was checked; `split=train` is asked for by name, and the report says so.

        Raises:
            UserError: Records or patients of the training split are among these.
        """
        if self.settings.split == "train":
            return []
        if self.task is not None:
            return [
                f"The model was fine-tuned on the task {self.task}: whether it saw these "
                "records is not known from keys. Evaluate only what its task left out."
            ]
        keys = target.keys()
        return [check_overlap(keys.records, keys.patients, keys.secret, self.training, keys.source)]


class FileSubject(Subject):
    """Weights without a run: an export or the official file.

    Raises:
        UserError: There is no such file, or nothing to evaluate it on.
    """

    kind = "Weights"
    training = None

    def __init__(self, settings: EvaluationSettings) -> None:
        path = resolve_checkpoint(settings.checkpoint, settings.runs, None)
        name = _stem(path)
        super().__init__(name, path, name, Path("outputs") / "evaluations" / name, settings)
        if settings.needs_training_shards:
            raise UserError(
                "These weights belong to no run, so that there are no shards of their own: "
                "name shards=DIR, or an external set (experiment=eval_ptbxl source.root=DIR)."
            )
        if settings.average:
            raise UserError("average= averages runs: name the first of them with run=NAME.")

    def overlap_with(self, target: Target) -> list[str]:
        """Return that nothing could be checked: such weights come without their record keys."""
        origin = ""
        if self.trained.provenance.get("derived_from_official"):
            origin = (
                " They are derived from ECGFounder, which was trained on the Harvard-Emory "
                "database."
            )
        return [
            f"Whether {self.name} was trained on any of these records or patients could not be "
            f"checked: weights without their run come without the keys of its records.{origin}"
        ]


def open_target(subject: Subject, settings: EvaluationSettings) -> Target:
    """Return what the subject is evaluated on."""
    if settings.external:
        return ExternalTarget(settings, subject.trained, subject.secret_file)
    shards = (
        open_shards(settings.shards, settings.cache_dir, settings.cache_bytes)
        if settings.shards
        else subject.training
    )
    assert shards is not None
    return SplitTarget(settings, shards)


def _stem(path: Path) -> str:
    """Return the name of weights without a run: their folder's where the file says nothing."""
    path = path.resolve()
    if path.name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        path = path.parent
    if path.is_dir():
        return path.name
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}-{path.stem}"
    return path.stem

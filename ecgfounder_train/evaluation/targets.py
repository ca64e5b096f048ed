"""What weights are evaluated on: a split of shards, or an external set of records."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.private_files import private_folder
from ecgfounder_train.core.pseudonyms import load_or_create_secret
from ecgfounder_train.evaluation.external import (
    ExternalSet,
    open_external,
    predict_external,
    signal_of,
)
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.evaluation.settings import EvaluationSettings
from ecgfounder_train.evaluation.tables import label_notes
from ecgfounder_train.labels import Vocabulary, vocabulary_names
from ecgfounder_train.labels.groups import in_group
from ecgfounder_train.labels.maps import LabelMap
from ecgfounder_train.metrics.predictions import Predictions
from ecgfounder_train.records.sources import open_source
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.trained_model import TrainedModel

_MICROVOLT_PER_MILLIVOLT = 1000.0
Signal = tuple[NDArray[Any], float, tuple[str, ...]]
"""A window in mV, its rate in Hz, its leads."""


class Keys(NamedTuple):
    """Keys of the evaluated records and patients, the secret behind them, and their source."""

    records: list[str]
    patients: list[str]
    secret: str
    source: str


@dataclass(frozen=True)
class Predicted:
    """Predictions of every window, with sentences and rows for the report."""

    windows: Predictions
    remarks: list[str] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)


class SplitTarget:
    """A split of a shard set that has the model's labels.

    Attributes:
        name: Folder of the evaluation.
        title: In the report's heading.
        is_validation: Whether it is the validation split of the run's own shards.
        label_map: None: the labels are the model's own.
    """

    label_map: LabelMap | None = None

    def __init__(self, settings: EvaluationSettings, shards: ShardSet) -> None:
        self.settings = settings
        self.shards = shards
        self.split = settings.split or ("test" if len(shards.rows("test")) else "val")
        self.name = self.split
        self.title = f"{self.split} split"
        self.is_validation = settings.needs_training_shards and self.split == "val"

    def check(self) -> list[str]:
        """Return remarks on the records; refuse a group without labels before any prediction.

        Raises:
            UserError: No label belongs to the group that is asked for.
        """
        vocabulary = self.shards.manifest.vocabulary
        in_group(vocabulary["groups"], self.settings.group)
        if not (unknown := self._unknown_patients()):
            return []
        return [
            f"The patient of {unknown:,} of the data set's records is not known; there the "
            "record counts as a patient, and intervals are too narrow if patients recur."
        ]

    def _unknown_patients(self) -> int:
        """Return how many records stand for their patient, by the catalog beside the shards."""
        from ecgfounder_train.catalog import read_catalog

        path = private_folder(self.shards.folder) / "catalog.parquet"
        if not path.is_file():
            return 0
        return int(read_catalog(path).summary["source"].get("patient_unknown_record_stands_in", 0))

    def keys(self) -> Keys:
        """Return the keys of the split's records and patients."""
        entries = self.shards.index[self.shards.rows(self.split)]
        records, patients = (
            entries[name].astype(str).tolist() for name in ("record_key", "patient_key")
        )
        manifest = self.shards.manifest
        return Keys(records, patients, manifest.fingerprints["secret"], manifest.source)

    def predict(self, trained: TrainedModel, name: str) -> Predicted:
        """Return the predictions of every window of the split.

        Raises:
            UserError: Shards and model do not belong together.
        """
        how, manifest = self.settings, self.shards.manifest
        windows = predict_split(
            trained, self.shards, self.split, how.device, how.batch_size, name, how.crops
        )
        return Predicted(
            windows, [], {"data": f"shards of {manifest.source} ({manifest.fingerprint})"}
        )

    def signal(self, trained: TrainedModel, key: str, window: int) -> Signal:
        """Return a window as the shards store it."""
        index, manifest = self.shards.index, self.shards.manifest
        found = (index["record_key"] == key.encode()) & (index["window"] == window)
        ecg = self.shards.read_sample(int(np.flatnonzero(found)[0])).ecg
        return ecg / _MICROVOLT_PER_MILLIVOLT, manifest.fs, manifest.leads

    def notes(self, trained: TrainedModel) -> tuple[dict[str, str], dict[str, str]]:
        """Return remarks and groups by label."""
        groups = self.shards.manifest.vocabulary["groups"]
        return _vocabulary_notes(trained), dict(zip(trained.labels, groups, strict=True))


class ExternalTarget:
    """An external set: its records are read directly, its statements mapped to the model's labels.

    Attributes:
        name: Folder of the evaluation: the set, its split, and a map other than ours.
        title: In the report's heading.
    """

    is_validation = False

    def __init__(
        self,
        settings: EvaluationSettings,
        trained: TrainedModel,
        secret_file: Callable[[], Path],
    ) -> None:
        self.settings = settings
        other_map = "" if settings.map == "ours" else Path(settings.map).stem
        self.name = "-".join(filter(None, (settings.external, settings.split, other_map)))
        self.title = f"external set {self.name}"
        self._trained = trained
        self._secret_file = secret_file

    @cached_property
    def external(self) -> ExternalSet:
        """The records, with answers in the model's labels.

        Raises:
            UserError: The source, its split or the map is wrong.
        """
        settings, trained, source = self.settings, self._trained, self.settings.source
        if not source or source.get("root") in (None, "", "???"):
            raise UserError("An external set needs its recordings: source.root=DIR.")
        if trained.vocabulary in settings.native_labels and settings.map == "ours":
            vocabulary = Vocabulary.load(trained.vocabulary)
            label_map = LabelMap.of_vocabulary(vocabulary, trained.labels)
        else:
            label_map = LabelMap.load(
                settings.external, trained.vocabulary, trained.labels, settings.map
            )
        return open_external(
            open_source(source),
            str(source["name"]),
            label_map,
            load_or_create_secret(self._secret_file()),
            settings.split,
        )

    @property
    def label_map(self) -> LabelMap:
        """Which of the model's labels have an answer here."""
        return self.external.label_map

    def check(self) -> list[str]:
        """Return no remarks; those on the records follow from the predictions."""
        return []

    def keys(self) -> Keys:
        """Return the keys of the records and patients with an answer."""
        frame = self.external.frame
        return Keys(
            frame["record_key"].to_list(),
            frame["patient_key"].to_list(),
            self.external.secret,
            self.external.name,
        )

    def _as_asked(self, trained: TrainedModel) -> TrainedModel:
        """Return the model that cuts longer records by `windows=`."""
        return trained.with_windows(self.settings.windows) if self.settings.windows else trained

    def predict(self, trained: TrainedModel, name: str) -> Predicted:
        """Return the predictions of every window of every usable record.

        Raises:
            UserError: No record or no label fits the model.
        """
        external, label_map, how = self.external, self.label_map, self.settings
        done = predict_external(
            self._as_asked(trained), external, how.device, how.batch_size, name, how.crops
        )
        left_out = (
            f" {external.num_unanswered:,} more have no answer to any evaluated label."
            if external.num_unanswered
            else ""
        )
        return Predicted(
            done.predictions,
            [
                done.summary + left_out,
                f"{len(label_map.entries)} of the model's {len(label_map.labels)} labels have an "
                f"answer here (map {label_map.name}, {label_map.variant}).",
                external.coverage.summary,
            ],
            {
                "data": f"{external.name}, read from its records",
                "label map": f"{label_map.name}, {label_map.variant} ({label_map.fingerprint})",
            },
        )

    def signal(self, trained: TrainedModel, key: str, window: int) -> Signal:
        """Return a window as the model's filters leave it."""
        row = self.external.frame["record_key"].to_list().index(key)
        return signal_of(self._as_asked(trained), self.external, row, window)

    def notes(self, trained: TrainedModel) -> tuple[dict[str, str], dict[str, str]]:
        """Return remarks and groups by label."""
        notes, known = _vocabulary_notes(trained), _known_vocabulary(trained)
        if self.label_map.vocabulary is None:
            for label, note in self.label_map.notes.items():
                notes[label] = "; ".join(filter(None, [notes.get(label, ""), note]))
            return notes, {}
        return notes, {e.name: e.group for e in known.entries} if known else {}


Target = SplitTarget | ExternalTarget


def _known_vocabulary(trained: TrainedModel) -> Vocabulary | None:
    name = trained.vocabulary
    return Vocabulary.load(name) if name in vocabulary_names() else None


def _vocabulary_notes(trained: TrainedModel) -> dict[str, str]:
    known = _known_vocabulary(trained)
    return label_notes(known) if known else {}

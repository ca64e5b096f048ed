"""One evaluation from its config: predictions, thresholds, controls, report, comparison."""

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ecgfounder_train import __version__
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.private_files import private_folder
from ecgfounder_train.core.pseudonyms import load_or_create_secret
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.assessment import Assessment, assess
from ecgfounder_train.evaluation.averaging import averaged
from ecgfounder_train.evaluation.comparison import write_comparison
from ecgfounder_train.evaluation.controls import untrained_probe
from ecgfounder_train.evaluation.external import (
    ExternalSet,
    open_external,
    predict_external,
    signal_of,
)
from ecgfounder_train.evaluation.mistakes import confident_mistakes
from ecgfounder_train.evaluation.pooling import pool_windows
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.evaluation.report import Strip, write_assessment, write_strips_page
from ecgfounder_train.evaluation.tables import label_notes
from ecgfounder_train.labels import Vocabulary, vocabulary_names
from ecgfounder_train.labels.maps import LabelMap
from ecgfounder_train.loader.cache import open_shards
from ecgfounder_train.metrics.predictions import Predictions, write_predictions
from ecgfounder_train.records.sources import open_source
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.shards.overlap import check_overlap
from ecgfounder_train.weights.bundle import DESCRIPTION_FILE, WEIGHTS_FILE, weights_file
from ecgfounder_train.weights.checkpoint import find_checkpoint, resolve_checkpoint
from ecgfounder_train.weights.decisions import (
    Decisions,
    decisions_file,
    read_decisions,
    reading_of,
)
from ecgfounder_train.weights.trained_model import TrainedModel, choose_device

_MICROVOLT_PER_MILLIVOLT = 1000.0


@dataclass
class Evaluated:
    """A run's predictions, pooled, with what was learnt on the way."""

    predictions: Predictions
    windows: Predictions
    label_map: LabelMap | None
    remarks: list[str] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)


class Evaluation:
    """What `scripts/evaluate.py` does for one run, or for weights without one.

    Args:
        config: As `configs/evaluate.yaml` has it.
        name: Of the run; in compare mode there are several. None: `checkpoint` is a path of weights
            (an export, the official file), of whose training nothing is here.

    Raises:
        UserError: There is no such run or file, or settings contradict each other.
    """

    def __init__(self, config: Mapping[str, Any], name: str | None) -> None:
        self.config = config
        self.device: torch.device = choose_device(config["device"])
        self.run = RunDirectory.existing(config["paths"]["runs"], name) if name else None
        which = str(config["checkpoint"])
        self.checkpoint = (
            find_checkpoint(self.run, which)
            if self.run
            else resolve_checkpoint(which, config["paths"]["runs"], None)
        )
        self.trained = TrainedModel.load(self.checkpoint, self.device)
        if config["windows"] and not self.is_external:
            raise UserError(
                "windows= is for external sets; the windows of shards were cut by prepare."
            )
        self.batch_size = config["batch_size"]
        self.members = self._open_members(config["average"])
        if self.run and self.task is not None and not self.is_external:
            raise UserError(
                f"Run {name!r} was fine-tuned on the task {self.task!r}, whose answers are in its "
                "table and not in shards. Its test part was reported by finetune.py: "
                f"{self.run.evaluation('test') / 'report.html'}. Here it is evaluated on external "
                "sets alone (experiment=eval_*)."
            )

    def _open_members(self, names: Any) -> list["Evaluation"]:
        """Return the further runs whose logits are averaged with this one's."""
        if not names:
            return []
        if self.run is None:
            raise UserError("average= averages runs: name the first of them with run=NAME.")
        names = [str(name) for name in names] if isinstance(names, list) else [str(names)]
        if len({self.run.name, *names}) <= len(names):
            raise UserError(
                f"average={names}: each run counts once, and run={self.run.name} is among them."
            )
        members = [Evaluation(dict(self.config) | {"average": None}, name) for name in names]
        for member in members:
            if member.trained.labels != self.trained.labels:
                raise UserError(
                    f"Run {member.called!r} has other labels than {self.called!r}; only runs with "
                    "the same labels can be averaged."
                )
        return members

    @cached_property
    def _run_config(self) -> dict[str, Any]:
        if self.run is None:
            return {}
        return self.run.read_config()

    @property
    def called(self) -> str:
        """What the weights are called in reports: the run, or file or folder of the export."""
        return self.run.name if self.run else _stem(self.checkpoint)

    @cached_property
    def task(self) -> str | None:
        """The task a fine-tuned run was trained for, None of a pretraining."""
        task = self._run_config.get("task")
        return str(task["name"]) if task else None

    @property
    def is_external(self) -> bool:
        """Whether another data set is evaluated than shards with the model's labels."""
        return bool(self.config["external"]["name"])

    @cached_property
    def training(self) -> ShardSet | None:
        """The shards the run was trained on, None where they are gone or hold no answers."""
        if self.run is None:
            if not self.is_external and not self.config["shards"]:
                raise UserError(
                    "These weights belong to no run, so that there are no shards of their own: "
                    "name shards=DIR, or an external set (experiment=eval_ptbxl source.root=DIR)."
                )
            return None
        if self.task is not None:
            return None
        config = self.run.read_config(required=("shards", "data"))
        data = config["data"]
        try:
            return open_shards(
                config["shards"],
                self.config["cache_dir"] or data.get("cache_dir"),
                self.config["cache_bytes"],
            )
        except UserError:
            if self.is_external or self.config["shards"]:
                return None
            raise

    @cached_property
    def shards(self) -> ShardSet:
        """The shards that are evaluated."""
        if self.config["shards"]:
            return open_shards(
                self.config["shards"], self.config["cache_dir"], self.config["cache_bytes"]
            )
        assert self.training is not None
        return self.training

    @cached_property
    def split(self) -> str | None:
        """The part that is evaluated; of an external set None means all of it."""
        chosen: str | None = self.config["split"]
        if self.is_external:
            return chosen
        return chosen or ("test" if len(self.shards.rows("test")) else "val")

    @property
    def name(self) -> str:
        """Name of the folder: the part, or the external set and what was chosen for it."""
        if not self.is_external:
            assert self.split is not None
            parts = [self.split]
        else:
            parts = [self.config["external"]["name"], self.split or ""]
            variant = str(self.config["map"])
            parts.append("" if variant == "ours" else Path(variant).stem)
        parts.append("" if self.config["crops"] == 1 else f"{self.config['crops']}crops")
        parts.append(str(self.config["group"] or "").replace(":", "_"))
        parts.append(self._average_name)
        return "-".join(filter(None, parts))

    @property
    def _average_name(self) -> str:
        return "_".join(["mean_with", *(m.called for m in self.members)]) if self.members else ""

    @property
    def folder(self) -> Path:
        """Where everything is written."""
        return self._home / self.name

    @property
    def _home(self) -> Path:
        if self.config["out"]:
            return Path(self.config["out"])
        if self.run is not None:
            return self.run.evaluation(self.name).parent
        return Path("outputs") / "evaluations" / self.called

    @cached_property
    def external(self) -> ExternalSet:
        """The external set, with answers in the model's labels."""
        return self._open_external(self.trained)

    def _open_external(self, trained: TrainedModel) -> ExternalSet:
        settings, source = self.config["external"], self.config.get("source")
        if not source or source.get("root") in (None, "", "???"):
            raise UserError("An external set needs its recordings: source.root=DIR.")
        variant = str(self.config["map"])
        if trained.vocabulary in settings["native_labels"] and variant == "ours":
            vocabulary = Vocabulary.load(trained.vocabulary)
            label_map = LabelMap.of_vocabulary(vocabulary, trained.labels)
        else:
            label_map = LabelMap.load(settings["name"], trained.vocabulary, trained.labels, variant)
        return open_external(
            open_source(source),
            str(source["name"]),
            label_map,
            load_or_create_secret(self._secret_file()),
            self.split,
        )

    def _secret_file(self) -> Path:
        if self.config["secret"]:
            return Path(self.config["secret"])
        if self.training is not None:
            folder = self.training.folder
            beside = private_folder(folder) / "secret.key"
            # The training shards' own secret makes keys that compare with theirs.
            if beside.is_file():
                return beside
        home = self.run.path if self.run else self._home
        return home / "evaluation.private" / "secret.key"

    def evaluate(self) -> Evaluated:
        """Return the model's predictions, pooled and checked against its training part.

        Raises:
            UserError: The data do not fit the model, or were trained on.
        """
        external = self.external if self.is_external else None
        if external is None:  # a typo must not cost the predictions
            vocabulary = self.shards.manifest.vocabulary
            groups = dict(zip(vocabulary["labels"], vocabulary["groups"], strict=True))
            _in_group(vocabulary["labels"], groups, self.config["group"])
        overlap = self.check_overlap(self.training)
        evaluated = self._predict(self.trained, self.called, external)
        evaluated.remarks += overlap
        if self.members:
            self._average(evaluated, external)
        if not external and (unknown := _unknown_patients(self.shards)):
            evaluated.remarks.append(
                f"The patient of {unknown:,} of the data set's records is not known; there the "
                "record stands for the patient, and intervals are too narrow if patients recur."
            )
        return evaluated

    def _average(self, evaluated: Evaluated, external: ExternalSet | None) -> None:
        """Put the members' mean into what this run predicted alone."""
        own = self.training
        for member in self.members:
            if member.training is None or own is None or member.training.folder != own.folder:
                evaluated.remarks += self.check_overlap(member.training)
            told = member._provenance(member.trained)
            evaluated.provenance |= {
                f"{member.called}: {key}": value
                for key, value in told.items()
                if not key.startswith("version of")
            }
        others = [self._predict(item.trained, item.called, external) for item in self.members]
        evaluated.predictions = averaged(
            [evaluated.predictions, *(other.predictions for other in others)]
        )
        evaluated.windows = averaged([evaluated.windows, *(other.windows for other in others)])
        evaluated.remarks.append(
            f"Each logit is the mean of {len(others) + 1} networks' "
            f"({', '.join(item.called for item in (self, *self.members))})."
        )

    def _for_records(self, trained: TrainedModel) -> TrainedModel:
        """Return the model that cuts longer records as asked for."""
        policy = self.config["windows"]
        return trained.with_windows(str(policy)) if policy else trained

    def check_overlap(self, training: ShardSet | None) -> list[str]:
        """Return what was checked in words; refuse records or patients of the training part.

        `split=train` is asked for by name, and the report says what such numbers mean.

        Raises:
            UserError: Some of them are among these.
        """
        if self.run is None:
            return [self._unknown_training()]
        if self.split == "train":
            return []
        if self.is_external:
            frame, secret = self.external.frame, self.external.secret
            keys = frame["record_key"].to_list(), frame["patient_key"].to_list()
            if self.task is not None:
                return [
                    f"The model was fine-tuned on the task {self.task}: whether it saw these "
                    "records is not known from keys. Evaluate only what its task left out."
                ]
            return [check_overlap(*keys, secret, training, self.external.name)]
        entries = self.shards.index[self.shards.rows(str(self.split))]
        records, patients = (
            entries[name].astype(str).tolist() for name in ("record_key", "patient_key")
        )
        manifest = self.shards.manifest
        secret = manifest.fingerprints["secret"]
        return [check_overlap(records, patients, secret, training, manifest.source)]

    def _unknown_training(self) -> str:
        """Return what cannot be checked of weights that came without their training records."""
        known = self.trained.provenance
        origin = ""
        if known.get("derived_from_official"):
            origin = " They come from ECGFounder, which was trained on the Harvard-Emory database."
        return (
            f"Whether {self.called} was trained on any of these records or patients could not be "
            f"checked: weights without their run come without the keys of its records.{origin}"
        )

    def _predict(self, trained: TrainedModel, name: str, external: ExternalSet | None) -> Evaluated:
        crops, provenance, remarks = self.config["crops"], self._provenance(trained), []
        label_map = None
        if external is not None:
            trained = self._for_records(trained)
            done = predict_external(trained, external, self.device, self.batch_size, name, crops)
            windows, label_map = done.predictions, external.label_map
            remarks += [
                done.summary
                + (
                    f" {external.num_unanswered:,} more have no answer to any evaluated label."
                    if external.num_unanswered
                    else ""
                ),
                f"{len(label_map.entries)} of the model's {len(label_map.labels)} labels have an "
                f"answer here (map {label_map.name}, {label_map.variant}).",
            ]
            provenance |= {
                "data": f"{external.name}, read from its records",
                "label map": f"{label_map.name}, {label_map.variant} ({label_map.fingerprint})",
            }
        else:
            assert self.split is not None
            windows = predict_split(
                trained, self.shards, self.split, self.device, self.batch_size, name, crops
            )
            provenance["data"] = (
                f"shards of {self.shards.manifest.source} ({self.shards.manifest.fingerprint})"
            )
        pooled = pool_windows(windows, self.config["pool"])
        if len(pooled) < len(windows):
            remarks.append(
                f"{len(windows):,} windows were pooled to {len(pooled):,} records by the "
                f"{self.config['pool']} of their logits."
            )
        return Evaluated(pooled, windows, label_map, remarks, provenance)

    @property
    def _reading(self) -> str:
        return reading_of(self.config["pool"], self.config["crops"], self.config["calibration"])

    def decisions(self, evaluated: Evaluated) -> Decisions | None:
        """Return thresholds and calibration, fitted on validation the first time they are needed.

        Weights without a run have what was kept beside them, if logits are read as for its fit.
        None where the training shards are gone or without a validation part. A validation part
        that was just evaluated is not predicted again.
        """
        if self.run is None:
            kept = self.trained.decisions
            suits = kept and kept.suits(self.config["pool"], self.config["crops"])
            return kept if suits else None
        path, checksum = self._decisions_file, sha256_file(self.checkpoint)
        if self.members:
            others = [sha256_file(member.checkpoint) for member in self.members]
            checksum = fingerprint([checksum, *others])
        stored = read_decisions(path, checksum, self._reading)
        if stored is not None:
            return stored
        if self.training is None or not len(self.training.rows("val")):
            return None
        if not self.is_external and not self.config["shards"] and self.split == "val":
            validation = evaluated.predictions
        else:
            windows = [
                predict_split(
                    item.trained,
                    self.training,
                    "val",
                    self.device,
                    self.batch_size,
                    item.called,
                    self.config["crops"],
                )
                for item in (self, *self.members)
            ]
            validation = pool_windows(averaged(windows), self.config["pool"])
        fitted = Decisions.fit(
            validation,
            checksum,
            self._reading,
            self.config["calibration"],
        )
        fitted.write(path)
        return fitted

    @property
    def _decisions_file(self) -> Path:
        path = decisions_file(self.checkpoint)
        return path.with_name(f"{self._average_name}.{path.name}") if self.members else path

    def controls(self, evaluated: Evaluated) -> dict[str, Predictions]:
        """Return what the controls say of the same records; they are those of a run."""
        controls: dict[str, Predictions] = {}
        if self.run is None:
            return controls
        if self.config["controls"]:
            if self.training is None:
                raise UserError(
                    "controls=true fits a probe on the run's training shards, which are not here. "
                    "Restore them, or leave the control out."
                )
            probe = untrained_probe(self.trained, self.training, self.device, self.batch_size)
            controls["untrained + probe"] = self._predict_like(probe, "untrained", evaluated)
        if self.config["scratch"]:
            alone = dict(self.config) | {"average": None}
            other = Evaluation(alone, str(self.config["scratch"]))
            self.check_overlap(other.training)
            found = self._predict_like(other.trained, other.called, evaluated)
            controls["from scratch"] = found
        return controls

    def _predict_like(self, trained: TrainedModel, name: str, evaluated: Evaluated) -> Predictions:
        external = self.external if evaluated.label_map is not None else None
        return self._predict(trained, name, external).predictions

    def write(self, evaluated: Evaluated) -> Path:
        """Write predictions, label table, report and page of mistakes; return the report's path."""
        windows = replace(evaluated.windows, provenance=evaluated.provenance)
        write_predictions(self.folder / "predictions.parquet", windows)
        decisions = self.decisions(evaluated)
        label_map, remarks = evaluated.label_map, evaluated.remarks
        if decisions is None:
            remarks.append(f"Nothing was calibrated and no threshold set: {self._why_undecided}")
        if self.run is None and (self.config["controls"] or self.config["scratch"]):
            remarks.append(
                "The controls were left out: they need the run's shards and its network untrained, "
                "and these are weights without a run."
            )
        notes, groups = self._notes(label_map)
        chosen = _in_group(evaluated.predictions.labels, groups, self.config["group"])
        if not chosen.all():
            remarks.append(
                f"{int(chosen.sum())} of the {len(chosen)} labels are evaluated here: "
                f"group={self.config['group']}."
            )
        assessment = assess(
            evaluated.predictions.of_labels(chosen),
            notes,
            groups,
            decisions,
            self.config["threshold"],
            {name: other.of_labels(chosen) for name, other in self.controls(evaluated).items()},
        )
        mistakes = self._write_mistakes(assessment)
        together = " + ".join(item.called for item in (self, *self.members))
        title = f"{'Run' if self.run else 'Weights'} {together}, " + (
            f"external set {self.name}" if label_map else f"{self.split} split"
        )
        return write_assessment(
            self.folder / "report.html",
            assessment,
            self.run.metrics_file if self.run and self.run.metrics_file.is_file() else None,
            title,
            evaluated.provenance | self._settings(decisions),
            excluded=label_map.excluded if label_map else None,
            remarks=remarks,
            mistakes_page=mistakes,
        )

    @property
    def _why_undecided(self) -> str:
        if self.run is not None:
            return "the run's validation records are not here."
        kept = self.trained.decisions
        if kept is None:
            return "none is kept beside these weights."
        asked = reading_of(self.config["pool"], self.config["crops"], "")
        return f"what is kept beside these weights was fitted for {kept.reading}, not {asked}."

    def _notes(self, label_map: LabelMap | None) -> tuple[dict[str, str], dict[str, str]]:
        name = self.trained.vocabulary
        known = Vocabulary.load(name) if name in vocabulary_names() else None
        notes = label_notes(known) if known else {}
        groups: dict[str, str] = {}
        if label_map is None:
            vocabulary = self.shards.manifest.vocabulary
            groups = dict(zip(self.trained.labels, vocabulary["groups"], strict=True))
        elif label_map.vocabulary is None:
            for label, note in label_map.notes.items():
                notes[label] = "; ".join(filter(None, [notes.get(label, ""), note]))
        elif known:
            groups = {entry.name: entry.group for entry in known.entries}
        return notes, groups

    def _write_mistakes(self, assessment: Assessment) -> str:
        limit = self.config["mistakes"]
        path = self.folder / "mistakes.html"
        found = confident_mistakes(assessment, limit) if limit else []
        if not found:
            path.unlink(missing_ok=True)
            return ""
        strips = []
        predictions = assessment.predictions
        for mistake in found:
            key, window = predictions.record_key[mistake.row], predictions.window[mistake.row]
            signal, fs, leads = self._signal(str(key), int(window))
            stated = ", ".join(
                predictions.labels[c] for c in np.flatnonzero(predictions.targets[mistake.row])
            )
            strips.append(
                Strip(
                    signal,
                    fs,
                    leads,
                    f"Record {key[:8]}",
                    f"stated: {stated or 'none of the evaluated labels'}",
                    mistake.summary(),
                    caption=f"{mistake.summary()}; {mistake.rank:.1%} of the records "
                    + ("scored higher." if mistake.missed else "scored lower."),
                )
            )
        introduction = (
            "What the model was surest of against what the reader wrote, as the filters leave the "
            "signal. Some of these are the model's mistakes, some the reader's."
        )
        write_strips_page(path, strips, f"Most confident mistakes of {self.called}", introduction)
        return path.name

    def _signal(self, key: str, window: int) -> tuple[Any, float, tuple[str, ...]]:
        if self.is_external:
            row = self.external.frame["record_key"].to_list().index(key)
            trained = self._for_records(self.trained)
            return signal_of(trained, self.external, row, window)
        index = self.shards.index
        row = int(
            np.flatnonzero((index["record_key"] == key.encode()) & (index["window"] == window))[0]
        )
        manifest = self.shards.manifest
        ecg = self.shards.read_sample(row).ecg
        return ecg / _MICROVOLT_PER_MILLIVOLT, manifest.fs, manifest.leads

    def _provenance(self, trained: TrainedModel) -> dict[str, str]:
        which = self.config["checkpoint"] if self.run else self.called
        return {
            "checkpoint": f"{which} ({_seen(trained)})",
            "sha256 of the checkpoint": sha256_file(weights_file(self.checkpoint)),
            "model": trained.model_name,
            "signal profile": f"{trained.profile.name}, {trained.profile.fs:g} Hz, "
            f"leads {trained.lead_choice}",
            **{f"version of {name}": value for name, value in trained.versions.items()},
        }

    def _settings(self, decisions: Decisions | None) -> dict[str, str]:
        plain = {
            key: self.config[key]
            for key in ("split", "map", "windows", "pool", "crops", "threshold", "calibration",
                        "controls", "scratch")
        }  # fmt: skip
        rows = {
            "config": ", ".join(f"{key}={value}" for key, value in plain.items()),
            "fingerprint of the config": fingerprint(plain),
            "commit of the code": _commit(),
        }
        if decisions is not None:
            place = self._decisions_file.name if self.run else "kept beside the weights"
            rows["thresholds and calibration"] = (
                f"{place}, fitted on {decisions.num_records:,} validation records"
            )
        return rows


def evaluate(config: Mapping[str, Any]) -> Path:
    """Do what `configs/evaluate.yaml` asks for; return the path of the page that was written.

    Raises:
        UserError: A setting is wrong, or data and model do not belong together.
    """
    names = config["compare"]
    if not names:
        if not config["run"] and str(config["checkpoint"]) in ("best", "last"):
            raise UserError(
                "Name a run with run=NAME, several with compare=[A,B], or weights of their own "
                "with checkpoint=PATH."
            )
        evaluation = Evaluation(config, str(config["run"]) if config["run"] else None)
        return evaluation.write(evaluation.evaluate())
    if not isinstance(names, list) or len({str(name) for name in names}) < 2:
        raise UserError(f"compare={names} must list two or more different runs: compare=[A,B].")
    if config["average"]:
        raise UserError("average= goes with run=NAME, not with compare=.")
    evaluations = [Evaluation(config, str(name)) for name in names]
    results = [item.evaluate() for item in evaluations]
    first = evaluations[0]
    others = "_".join(item.called for item in evaluations[1:])
    provenance = {
        f"{item.called}: {key}": value
        for item, result in zip(evaluations, results, strict=True)
        for key, value in result.provenance.items()
        if not key.startswith("version of")
    }
    return write_comparison(
        first.folder / f"compare_{others}.html",
        {e.called: r.predictions for e, r in zip(evaluations, results, strict=True)},
        f"{' and '.join(item.called for item in evaluations)}, {first.name}",
        list(dict.fromkeys(_flat(result.remarks for result in results))),
        provenance | {"commit of the code": _commit()},
    )


def _in_group(
    labels: Sequence[str], groups: Mapping[str, str], group: str | None
) -> npt.NDArray[np.bool_]:
    """Return which labels belong to the group, or with `not:GROUP` which do not.

    Raises:
        UserError: No label does.
    """
    if group is None:
        return np.ones(len(labels), bool)
    name = group.removeprefix("not:")
    own = [(groups.get(label) or "").split("|") for label in labels]
    chosen = np.array([(name in names) == (name == group) for names in own])
    if not any(name in names for names in own) or not chosen.any():
        known = {each for names in own for each in names if each}
        raise UserError(
            f"group={group!r}: the labels have no such group. "
            f"Valid, also behind not: {', '.join(sorted(known)) or 'none'}."
        )
    return chosen


def _stem(path: Path) -> str:
    """Return what weights without a run are called: their folder where the file says nothing."""
    path = path.resolve()
    if path.name in (WEIGHTS_FILE, DESCRIPTION_FILE):
        path = path.parent
    if path.is_dir():
        return path.name
    if path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}-{path.stem}"
    return path.stem


def _seen(trained: TrainedModel) -> str:
    return f"{trained.samples_seen:,} samples seen" if trained.samples_seen else "samples unknown"


def _flat(lists: Iterable[list[str]]) -> list[str]:
    return [item for part in lists for item in part]


def _unknown_patients(shards: ShardSet) -> int:
    """Return how many records stand for their patient, as far as the catalog beside tells."""
    from ecgfounder_train.catalog import read_catalog

    path = private_folder(shards.folder) / "catalog.parquet"
    if not path.is_file():
        return 0
    summary = read_catalog(path).summary
    return int(summary["source"].get("patient_unknown_record_stands_in", 0))


def _commit() -> str:
    """Return the commit of the code where it runs from a repository, with a mark when changed."""
    folder = str(Path(__file__).parent)
    try:
        found = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return f"unknown (ecgfounder_train {__version__})"
    return found.stdout.strip()

"""Run or resume one fine-tuning, from a config to the report of its test split."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from omegaconf import OmegaConf

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.ranks import is_rank_zero, require_launch
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.finetuning.module import FinetuneModule, RegressionModule
from ecgfounder_train.finetuning.outcome import Reporting, read_result, report, summary
from ecgfounder_train.finetuning.probe import embeddings, fit_head
from ecgfounder_train.finetuning.starting_point import StartingPoint
from ecgfounder_train.finetuning.task import Task
from ecgfounder_train.finetuning.task_shards import open_task
from ecgfounder_train.loader.crops import check_crops
from ecgfounder_train.losses import MaskedRegression
from ecgfounder_train.models import Net1D
from ecgfounder_train.models.linear_readout import Readout
from ecgfounder_train.settings.training import (
    Augmentation,
    Budget,
    DataSettings,
    EmaSettings,
    OptimizerSettings,
    ResumeSettings,
    RunSettings,
    TrainerSettings,
)
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.shards.overlap import check_overlap
from ecgfounder_train.training.build import DataOrder
from ecgfounder_train.training.compatibility import require_compatible
from ecgfounder_train.training.config import KEYS_WITH_PATHS, RunConfig
from ecgfounder_train.training.ema import WeightAverage
from ecgfounder_train.training.failures import propagate_failures
from ecgfounder_train.training.pretrain import fit
from ecgfounder_train.training.run_state import RunMetadata
from ecgfounder_train.training.schedules import create_schedule
from ecgfounder_train.training.split_weights import create_split_loss
from ecgfounder_train.training.starts import begins_from_scratch, hold_run
from ecgfounder_train.training.trainer import hardware, on_this_machine, versions
from ecgfounder_train.weights.checkpoint import (
    BEST,
    FORMAT_VERSION,
    CheckpointFolder,
    load_checkpoint,
    newest_whole,
)
from ecgfounder_train.weights.outputs import Output
from ecgfounder_train.weights.trained_model import choose_device

MODES = ("linear_probe", "attention_probe", "full", "preview")
_PRIVATE_KEYS = (*KEYS_WITH_PATHS, "checkpoint", "cache", "controls")
_PRIVATE_TASK_KEYS = ("table", "records")


class Finetuning:
    """What `scripts/finetune.py` does for one run.

    Args:
        config: As `configs/finetune.yaml` has it.

    Raises:
        UserError: A setting is wrong; nothing has been written yet.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.mode = str(config["mode"])
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r} is unknown.{did_you_mean(self.mode, MODES)}")
        self.run = RunDirectory.of(config["paths"]["runs"], config["run"])
        self.numbers = RunSettings.from_config(config)
        self.trainer = on_this_machine(TrainerSettings.from_config(config["trainer"]))
        self.launch = require_launch(self.trainer.devices, self.trainer.num_nodes)
        DataSettings.from_config(config["data"]).per_rank(self.trainer.world_size)
        if self.mode == "linear_probe" and self.trainer.world_size > 1:
            raise UserError("mode=linear_probe is solved in one process: use one device.")
        self.task = Task.from_config(config.get("task"))
        self.start = StartingPoint.from_config(config)
        self.crops = check_crops(config["crops"], self.start.profile.num_samples)
        self.device = choose_device("cuda" if self.trainer.on_gpu else "cpu")
        if self.trainer.num_threads:
            torch.set_num_threads(self.trainer.num_threads)
        self._frozen_features: npt.NDArray[np.float32] | None = None

    def train(self) -> int:
        """Fit or train, or resume where the run stopped; return the exit code."""
        opened = open_task(
            self.task, self.start.profile, self.config["shards"], self.config["cache"]
        )
        self.shards = opened.with_fraction(float(self.config["label_fraction"]), self.numbers.seed)
        self.overlap = self._check_overlap()
        self.answers, self.outputs = self._standardised()
        if is_rank_zero():
            print(f"Task {self.task.name}: {self.shards.summary()}", flush=True)
            for word in self._silent_labels():
                print(f"warning: {word}", flush=True)
        model = self.start.network(
            len(self.outputs),
            self.numbers.seed,
            drop_path=self.config["drop_path"],
            head_dropout=self.config["head_dropout"],
            dropout=self.config["dropout"],
            pooling="attention" if self.mode == "attention_probe" else "mean",
        )
        model.recompute = self.trainer.recompute
        metadata = self._metadata(model)
        if self.mode == "linear_probe":
            return self._probe(model, metadata)
        if self.mode in ("preview", "attention_probe") and self._begins_from_scratch():
            # Attention begins as the mean over time, so the linear head is right for it too.
            self.head(model).copy_to(model.dense)
        # Embedding left the network in evaluation mode; Lightning trains in the mode it finds.
        module = self._module(model.train())
        config = RunConfig.from_config(self._training_config())
        order = DataOrder.of(self.shards, config.data, self.numbers.seed)
        with propagate_failures(self.run, self.launch) as note:
            return fit(config, self.shards, order, module, metadata, self.launch, note)

    def _begins_from_scratch(self) -> bool:
        resume = ResumeSettings.from_config(self.config["resume"])
        config = self._training_config()
        return begins_from_scratch(self.run, resume, bool(self.config["overwrite"]), config)

    def _standardised(self) -> tuple[npt.NDArray[np.float32], tuple[Output, ...]]:
        """Return the answers as the network learns them, by training records alone."""
        values, labels = self.shards.values, self.shards.manifest.labels
        if not self.task.is_regression:
            return values, tuple(Output(label) for label in labels)
        train = values[self.shards.rows("train")].astype(np.float64)
        measured = ~np.isnan(train)
        if few := [name for name, n in zip(labels, measured.sum(0), strict=True) if n < 2]:
            raise UserError(f"Fewer than two training records have a value of {few[0]!r}.")
        mean, std = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
        if flat := [name for name, s in zip(labels, std, strict=True) if not s > 0]:
            raise UserError(f"{flat[0]!r} has one value in all training records.")
        unit = self.task.unit
        if self.task.transform == "log":
            unit = f"ln {unit}".strip()
        outputs = tuple(
            Output(name, "regression", unit, float(m), float(s))
            for name, m, s in zip(labels, mean, std, strict=True)
        )
        return ((values - mean) / std).astype(np.float32), outputs

    def _silent_labels(self) -> list[str]:
        """Return what a share of the patients leaves unlearnable."""
        if self.task.is_regression:
            return []
        train = self.shards.values[self.shards.rows("train")]
        absent = [
            name
            for name, column in zip(self.shards.manifest.labels, train.T, strict=True)
            if not (column == 1).any() or not (column == 0).any()
        ]
        if not absent:
            return []
        return [
            f"{len(absent)} label(s) have no positive or no negative among these training "
            f"patients and cannot be learnt: {', '.join(absent[:5])}."
        ]

    def _check_overlap(self) -> str:
        """Return what is known of test patients in the pretraining; refuse what is known to be.

        Raises:
            UserError: Test records or patients were pretrained on.
        """
        name = self.config["from_run"]
        if self.start.state is None or not name:
            return (
                ""
                if self.start.state is None
                else ("Whether the pretraining saw these patients is not known from keys.")
            )
        pretrained = RunDirectory.existing(self.config["paths"]["runs"], name)
        folder = pretrained.read_config().get("shards")
        try:
            training = ShardSet.open(folder) if folder else None
        except UserError:
            training = None
        entries = self.shards.index[self.shards.rows("test")]
        records, patients = (
            entries[key].astype(str).tolist() for key in ("record_key", "patient_key")
        )
        manifest = self.shards.manifest
        secret = manifest.fingerprints["secret"]
        return check_overlap(records, patients, secret, training, manifest.source)

    def head(self, model: Net1D) -> Readout:
        """Return the linear head on the frozen network's features."""
        features = embeddings(
            model,
            self.shards,
            self.start.transform(),
            self.crops,
            self.device,
            int(self.config["batch_size"]),
            self.config["cache"],
            fingerprint([self.start.identity, self.start.model, self._fresh_seed()]),
        )
        if self.mode == "linear_probe":
            self._frozen_features = features  # the report need not run the network again
        found = fit_head(features, self.shards, self.answers, self.task.is_regression)
        if is_rank_zero():
            chosen = ", ".join(f"{value:g}" for value in sorted(set(found.penalties.tolist())))
            print(f"Linear probe: penalties chosen on validation: {chosen}.", flush=True)
        model.cpu()
        return found

    def _fresh_seed(self) -> int | None:
        return self.numbers.seed if self.start.state is None else None

    def _probe(self, model: Net1D, metadata: RunMetadata) -> int:
        overwrite = bool(self.config["overwrite"])
        with hold_run(self.run, overwrite, self._training_config()):
            newest = newest_whole(self.run)
            if newest is not None:
                if str(self.config["resume"]["checkpoint"]) == "none":
                    raise UserError(
                        f"Run {self.run.name!r} exists and resume=none would overwrite it. Choose "
                        f"another run=NAME, or delete {self.run.path}."
                    )
                require_compatible(load_checkpoint(newest), metadata, newest)
                if (self.run.checkpoints / BEST).is_file():
                    print(f"Run {self.run.name} is complete.", flush=True)
                    return 0
            with atomic_file(self.run.config_file, "w") as handle:
                handle.write(OmegaConf.to_yaml(OmegaConf.create(self._training_config())))
            self.head(model).copy_to(model.dense)
            seen = len(self.shards.rows("train"))
            position = {"epoch": 1, "slots": 0, "global_step": 0, "samples_seen": seen}
            best = {"value": None, "samples_seen": seen}
            CheckpointFolder(self.run, 1).save(
                {
                    "format_version": FORMAT_VERSION,
                    "model": model.state_dict(),
                    "ema": None,
                    "optimizer": {},
                    "precision": {},
                    "position": position,
                    "rng": {"kind": "counter", "seed": self.numbers.seed},
                    "best": best,
                    "scores": [],
                    "window": {"loss": 0.0, "batches": 0},
                    **vars(metadata),
                },
                is_best=True,
            )
            self.run.write_state(
                {"state": "finished", **position, "total_samples": seen, **_shown(metadata)}
            )
        return 0

    def _metadata(self, model: Net1D) -> RunMetadata:
        manifest, start = self.shards.manifest, self.start
        spec: dict[str, Any] = {
            # From the network: what differs from the table, and nothing that a task changed back.
            "model": {
                **start.model,
                **{
                    key: value
                    for key, value in vars(model.config).items()
                    if key in ("drop_path", "head_dropout", "dropout", "pooling")
                },
            },
            "num_leads": model.num_leads,
            "lead_choice": start.lead_choice,
            "labels": list(manifest.labels),
            "vocabulary": dict(manifest.vocabulary),
            "signal": start.profile.to_dict(),
            "outputs": [output.to_dict() for output in self.outputs],
            "licence": start.licence,
            "provenance": {**start.provenance, "kind": "finetuned"},
            "crops": self.crops,
        }
        config = {key: value for key, value in self.config.items() if key not in _PRIVATE_KEYS}
        config["task"] = {
            key: value
            for key, value in dict(self.config["task"]).items()
            if key not in _PRIVATE_TASK_KEYS
        }
        return RunMetadata(
            spec=spec,
            config=config,
            fingerprints={
                "vocabulary": manifest.fingerprints["vocabulary"],
                "signal_profile": manifest.fingerprints["signal_profile"],
                "split": manifest.fingerprints["split"],
                "data": manifest.fingerprint,
                "model": fingerprint(
                    [_listed(spec["model"]), model.num_leads, self.mode, start.identity, self.crops]
                ),
            },
            versions=versions(),
            hardware=hardware(self.trainer),
        )

    def _module(self, model: Net1D) -> FinetuneModule:
        config, regression = self.config, self.task.is_regression
        num_samples = len(self.shards.rows("train"))
        half_life = EmaSettings.from_config(config["ema"]).half_life_samples
        kind = RegressionModule if regression else FinetuneModule
        torch.manual_seed(self.numbers.seed)
        return kind(
            model,
            MaskedRegression(str(config["regression_loss"]))
            if regression
            else create_split_loss(config["loss"], self.shards),
            self.start.transform(
                Augmentation.from_config(config["augmentation"]), self.numbers.seed
            ),
            OptimizerSettings.from_config(config["optimizer"]),
            create_schedule(config["schedule"]),
            num_samples=num_samples,
            total_samples=self._total_samples(),
            global_batch_size=DataSettings.from_config(config["data"]).global_batch_size,
            num_labels=len(self.outputs),
            seed=self.numbers.seed,
            average=WeightAverage(model, half_life) if half_life else None,
            monitored=list(range(len(self.outputs))),
            crops=self.crops,
            frozen=self.mode == "attention_probe",
            layer_decay=float(config["layer_decay"]),
            standardised=torch.from_numpy(self.answers) if regression else None,
        )

    def _training_config(self) -> dict[str, Any]:
        """Return the config in the form of `configs/pretrain.yaml`, the task's defaults filled in.

        `shards` is where the signals are, so that evaluate.py finds the run's records.
        """
        if self.mode == "linear_probe":
            return {**self.config, "shards": str(self.shards.folder)}
        checkpoint = dict(self.config["checkpoints"])
        if checkpoint["monitor"] is None:
            checkpoint["monitor"] = "val/loss" if self.task.is_regression else "val/macro_auroc"
        budget = dict(self.config["budget"])
        total = self._total_samples()
        if budget["validate_every_samples"] is None:
            # Of a small part, epochs are too short to look after each of them.
            times = Budget.from_config(budget).max_epochs / budget["validate_every_epochs"]
            budget["validate_every_samples"] = max(round(total / max(times, 1.0)), 1)
        return {
            **self.config,
            "budget": budget,
            "checkpoint": checkpoint,
            "start_checkpoint": self.config["checkpoint"],
            "shards": str(self.shards.folder),
        }

    def _total_samples(self) -> int:
        """Return the run's budget; a small training split is passed over more often."""
        budget = Budget.from_config(self.config["budget"])
        total = budget.total_samples(len(self.shards.rows("train")))
        return total if budget.max_samples else max(total, int(self.config["min_samples"]))

    def report(self) -> dict[str, Any]:
        """Report the test split of the finished run; return the numbers."""
        words = [
            f"Task {self.task.name} ({self.task.kind}), mode {self.mode}, from {self.start.words}.",
            f"{float(self.config['label_fraction']):.0%} of the training patients; selection, "
            "thresholds and calibration on validation only.",
        ]
        if self.overlap:
            words.append(self.overlap)
        how = Reporting(
            self.device,
            int(self.config["batch_size"]),
            self.crops,
            str(self.config["calibration"]),
            str(self.config["threshold"]),
            tuple(
                RunDirectory.existing(self.config["paths"]["runs"], str(name))
                for name in self.config["controls"] or ()
            ),
            tuple(words),
            self._frozen_features,
        )
        return report(self.run, self.shards, how)


def finetune(config: Mapping[str, Any]) -> int:
    """Do what `configs/finetune.yaml` asks for; return the process's exit code.

    Raises:
        UserError: If the configuration is invalid.
    """
    session = Finetuning(config)
    code = session.train()
    if code or not is_rank_zero():
        return code
    new = read_result(session.run) is None
    result = session.report()
    print(summary(result) + ("" if new else " (reported before)"))
    print(f"Report: {session.run.evaluation('test') / 'report.html'}", flush=True)
    return 0


def _shown(metadata: RunMetadata) -> dict[str, Any]:
    return {key: value for key, value in vars(metadata).items() if key != "config"}


def _listed(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}

"""The finished members of an ablation, read back: predictions on one part, sizes, hours, curves."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfounder_train.ablation.plan import STEP_FORWARDS, Ablation, Member
from ecgfounder_train.core.commands import command
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.pooling import pool_windows
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.evaluation.training_log import read_training_log
from ecgfounder_train.loader.patients import patient_rows
from ecgfounder_train.metrics.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
)
from ecgfounder_train.models import MODEL_TABLE, Net1DConfig, forward_flops
from ecgfounder_train.models.families import parameter_count
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.checkpoint import find_checkpoint
from ecgfounder_train.weights.trained_model import TrainedModel

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True)
class MemberResult:
    """A finished member.

    Attributes:
        predictions: One row per record.
        groups: Group of each label in the vocabulary, empty where it has none.
        num_samples: Training samples it had at hand (not: saw).
        hours: Of training, validations not counted.
        curves: Columns of metrics.csv, each (samples seen, value).
    """

    member: Member
    predictions: Predictions
    groups: tuple[str, ...]
    parameters: int
    flops_per_ecg: int
    samples_seen: int
    num_samples: int
    hours: float
    curves: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    fingerprints: dict[str, str]

    @property
    def flops(self) -> float:
        """Training FLOPs of the run."""
        return float(STEP_FORWARDS * self.flops_per_ecg * self.samples_seen)


@dataclass(frozen=True)
class Results:
    """What there is of an ablation.

    Attributes:
        finished: In the order of the members.
        unfinished: Names of members that are missing or stopped.
        dropped_records: Records that not every member's shards have.
    """

    finished: list[MemberResult]
    unfinished: list[str]
    dropped_records: int


def read_results(config: Mapping[str, Any], ablation: Ablation, device: torch.device) -> Results:
    """Return the finished members with their predictions on `split=`, on common records.

    Predictions are kept beside each run and made again only for another checkpoint.

    Raises:
        UserError: Nothing is finished, or members are of other vocabularies, splits or budgets.
    """
    finished, unfinished = [], []
    for member in ablation.members:
        run = RunDirectory.of(config["paths"]["runs"], member.name)
        state = run.read_state() if run.state_file.is_file() else {}
        if state.get("state") != "finished":
            unfinished.append(member.name)
            continue
        finished.append((member, run, state))
    if not finished:
        keys = {"ablation": ablation.name, "shards": config["shards"] or "DIR"}
        raise UserError(
            f"No member of the ablation {ablation.name} is finished in {config['paths']['runs']}. "
            f"Train them: {command('ablate run', keys, config['paths'])}."
        )
    if config["split"] == "test" and unfinished:
        raise UserError(
            f"split=test is for the end: {len(unfinished)} members are not finished "
            f"({', '.join(unfinished[:3])}). Compare on split=val until then."
        )
    _require_comparable(ablation, [(member, state) for member, _, state in finished])
    results = [_read(member, run, state, config, device) for member, run, state in finished]
    common, dropped = _on_common_records(results)
    return Results(common, unfinished, dropped)


def _require_comparable(
    ablation: Ablation, finished: Sequence[tuple[Member, Mapping[str, Any]]]
) -> None:
    """Raise where a difference in the results would have another cause than the axes."""
    first, state = finished[0]
    for member, other in finished[1:]:
        for what in ("vocabulary", "split"):
            if state["fingerprints"][what] != other["fingerprints"][what]:
                raise UserError(
                    f"{first.name} and {member.name} were trained with another {what}; one report "
                    "cannot compare them. Take one of them out of ablation.axes."
                )
    by_flops = ablation.budget.flops is not None
    # What was asked for: the last batch of a run overshoots it by more or less.
    spent = {
        member.name: float(_flops(found) if by_flops else found["total_samples"])
        for member, found in finished
    }
    low, high = min(spent, key=spent.__getitem__), max(spent, key=spent.__getitem__)
    # A FLOP budget is met to within a batch.
    if spent[high] > spent[low] * (1.05 if by_flops else 1.0):
        unit = "training FLOPs" if by_flops else "ECGs"
        raise UserError(
            f"{low} had a budget of {spent[low]:,.0f} {unit} and {high} of {spent[high]:,.0f}; one "
            "report cannot compare them. Train all members under one ablation.budget."
        )


def network_of_spec(spec: Mapping[str, Any]) -> Net1DConfig:
    """Return the network that a run's description names."""
    settings = dict(spec["model"])
    base = MODEL_TABLE[str(settings.pop("name"))]
    if "widths" in settings and "stage_strides" not in settings:
        settings["stage_strides"] = None
    settings |= {"num_leads": spec["num_leads"], "num_labels": len(spec["labels"])}
    return replace(base, **settings)


def _flops(state: Mapping[str, Any]) -> float:
    num_samples = SignalProfile.from_config(state["spec"]["signal"]).num_samples
    per_ecg = forward_flops(network_of_spec(state["spec"]), num_samples)
    return float(STEP_FORWARDS * per_ecg * state["total_samples"])


def _read(
    member: Member,
    run: RunDirectory,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    device: torch.device,
) -> MemberResult:
    begun = run.read_config(required=("shards", "data"))
    shards = ShardSet.open(begun["shards"])
    network = network_of_spec(state["spec"])
    hours, curves = _curves(run)
    data = begun["data"]
    share = data.get("patient_fraction", 1.0)
    rows = patient_rows(shards, share, data["patient_seed"]) if share < 1 else shards.rows("train")
    return MemberResult(
        member,
        _predictions(run, shards, config, device),
        tuple(str(name or "") for name in state["spec"]["vocabulary"]["groups"]),
        parameter_count(network),
        forward_flops(network, shards.manifest.num_samples),
        int(state["samples_seen"]),
        len(rows),
        hours,
        curves,
        dict(state["fingerprints"]),
    )


def _predictions(
    run: RunDirectory, shards: ShardSet, config: Mapping[str, Any], device: torch.device
) -> Predictions:
    """Return a run's predictions, kept ones if they were made with these very weights."""
    split = str(config["split"])
    checkpoint = find_checkpoint(run, str(config["checkpoint"]))
    kept = run.evaluation(f"ablation-{split}") / "predictions.parquet"
    weights = sha256_file(checkpoint)
    if kept.is_file():
        predictions = read_predictions(kept)
        same_data = predictions.fingerprints == shards.manifest.fingerprints
        if predictions.provenance.get("checkpoint_sha256") == weights and same_data:
            return predictions
    trained = TrainedModel.load(checkpoint, device)
    windows = predict_split(trained, shards, split, device, config["batch_size"], run.name)
    pooled = replace(pool_windows(windows), provenance={"checkpoint_sha256": weights})
    write_predictions(kept, pooled)
    return pooled


def _curves(
    run: RunDirectory,
) -> tuple[float, dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """Return the hours of training and the curves of metrics.csv."""
    seconds, before = 0.0, 0.0
    try:
        with open(run.metrics_file, newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                rate = float(row.get("ecg_per_s") or 0)
                if rate > 0:
                    seen = float(row["samples_seen"])
                    seconds += (seen - before) / rate
                    before = seen
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(
            f"{run.metrics_file} is damaged ({type(error).__name__}: {error}). Restore it from a "
            "backup, or train this member again."
        ) from error
    curves, _ = read_training_log(run.metrics_file)
    return seconds / SECONDS_PER_HOUR, dict(curves)


def _on_common_records(results: Sequence[MemberResult]) -> tuple[list[MemberResult], int]:
    """Return the results on the records all have, in one order, and how many had to go.

    Shard sets of other signal profiles reject other records; anything else that differs is a
    mistake.

    Raises:
        UserError: Other labels or answers, or hardly a record in common.
    """
    first = results[0].predictions
    keys = first.record_key.tolist()
    shared = set(keys).intersection(*(set(r.predictions.record_key.tolist()) for r in results[1:]))
    most = max(len(result.predictions) for result in results)
    if len(shared) < 0.5 * most:
        raise UserError(
            f"Only {len(shared):,} of {most:,} records are in every member's shards; they were "
            "prepared from other archives or with other secrets. Use one secret for all shard sets."
        )
    order = [key for key in keys if key in shared]
    aligned = []
    for result in results:
        item = result.predictions
        if item.labels != first.labels:
            raise UserError(
                f"{result.member.name} predicts other labels than {results[0].member.name}."
            )
        place = {key: row for row, key in enumerate(item.record_key.tolist())}
        rows = np.array([place[key] for key in order], np.int64)
        chosen = {
            name: getattr(item, name)[rows]
            for name in ("record_key", "patient_key", "window", "split", "site", "sex",
                         "age_years", "native_fs", "logits", "targets", "observed")
        }  # fmt: skip
        aligned.append(replace(result, predictions=replace(item, **chosen)))
        truth = aligned[0].predictions
        seen = np.array_equal(truth.observed, chosen["observed"])
        if not seen or (truth.targets != chosen["targets"])[truth.observed == 1].any():
            raise UserError(
                f"{result.member.name} has other answers for the same records than "
                f"{results[0].member.name}: its shards were made with other labels options."
            )
    return aligned, most - len(order)

"""Model card: intended use, measured performance and limits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ecgfounder_train import __version__
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.core.small_cells import MIN_CELL, is_small
from ecgfounder_train.evaluation.assessment import Assessment, assess
from ecgfounder_train.evaluation.pooling import pool_windows
from ecgfounder_train.evaluation.tables import MIN_POSITIVES, label_notes
from ecgfounder_train.labels import Vocabulary, vocabulary_names
from ecgfounder_train.metrics import Estimates
from ecgfounder_train.metrics.predictions import read_predictions
from ecgfounder_train.weights.trained_model import OFFICIAL_LICENCE, UNSTATED_LICENCE, TrainedModel

THRESHOLD = "youden"
_CHECKSUM = "sha256 of the checkpoint"
_MOST_LABELS = 200

LICENCE_DISCREPANCY = (
    "The original states two licences: its repository publishes code and weights of ECGFounder "
    "under MIT, its preprint (arXiv 2410.04133) is under CC BY 4.0. What is derived from its "
    "weights inherits the question. Cite the paper in any case (NEJM AI 2025;2(7):AIoa2401033)."
)
LICENCE_DERIVED = f"derived from ECGFounder: {OFFICIAL_LICENCE}"


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of the exported weights."""

    name: str
    assessment: Assessment


def find_evaluations(
    run: RunDirectory, checksum: str, trained: TrainedModel
) -> tuple[list[Evaluated], list[str]]:
    """Return the evaluations of these very weights, and the names of those of other ones.

    Args:
        run: Whose folder of evaluations is read.
        checksum: SHA-256 of the exported checkpoint.
        trained: Its thresholds and calibration are assessed where they suit.
    """
    found, others = [], []
    for path in sorted(run.evaluation("").glob("*/predictions.parquet")):
        name = path.parent.name
        try:
            predictions = read_predictions(path)
        except UserError:
            others.append(name)
            continue
        if predictions.provenance.get(_CHECKSUM) != checksum or "crops" in name:
            others.append(name)
            continue
        decisions = trained.decisions
        if decisions is not None and not decisions.suits("mean"):
            decisions = None
        pooled = pool_windows(predictions, "mean")
        found.append(Evaluated(name, assess(pooled, decisions=decisions, threshold=THRESHOLD)))
    return found, others


def write_card(
    trained: TrainedModel,
    name: str,
    files: Mapping[str, str],
    usage: Sequence[str],
    evaluations: Sequence[Evaluated] = (),
    others: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> str:
    """Return the model card in Markdown, with the hub's header.

    Args:
        trained: What is exported.
        name: Of the model.
        files: File name -> what it is.
        usage: Paragraphs and code of how to load it.
        evaluations: Fill in the metrics.
        others: Evaluations of other weights, which were left out.
        remarks: More to know, such as the effect of half precision.
    """
    parts = [_header(trained), f"# {name}", _opening(trained), "", "## Files", ""]
    parts += [f"* `{file}`: {meaning}" for file, meaning in files.items()]
    parts += ["", "## Use", "", *usage, "", "## Input", "", *_input(trained)]
    parts += ["", "## Outputs", "", *_outputs(trained, evaluations)]
    parts += ["", "## Metrics", "", *_metrics(trained, evaluations, others)]
    parts += ["", "## Intended use", "", _INTENDED]
    parts += ["", "## Limits", "", *(f"* {item}" for item in _limits(trained))]
    parts += ["", "## Biases", "", *_biases(evaluations)]
    parts += ["", "## Training data and provenance", "", *_provenance(trained)]
    parts += ["", "## Licence", "", *_licence(trained)]
    if remarks:
        parts += ["", "## Remarks", "", *(f"* {item}" for item in remarks)]
    return "\n".join(parts) + f"\n\nWritten by ecgfounder_train {__version__}.\n"


_INTENDED = (
    "Research on electrocardiograms: probabilities of report statements, features for further "
    "training, comparison of methods. **Not a medical device**: it was not tested in care, and "
    "no output may decide about a patient. A use near patients needs its own evaluation on their "
    "recordings, its own thresholds and approval."
)


def is_derived(trained: TrainedModel) -> bool:
    """Return whether the weights are, or were started from, an official checkpoint."""
    return bool(trained.provenance.get("derived_from_official"))


def _header(trained: TrainedModel) -> str:
    known = trained.licence.strip().lower()
    fields: dict[str, Any] = {"library_name": "ecgfounder_train"}
    if known in ("mit", "apache-2.0", "cc-by-4.0", "cc-by-nc-4.0") and not is_derived(trained):
        fields["license"] = known
    elif trained.licence == UNSTATED_LICENCE:
        fields["license"] = "unknown"
    else:
        fields |= {"license": "other", "license_name": trained.licence}
    fields["tags"] = ["ecg", "electrocardiogram", "biosignals", "multi-label", "net1d"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, width=1000)}---\n"


def _opening(trained: TrainedModel) -> str:
    leads = trained.of_lead_i().profile.leads
    what = "one lead (I)" if len(leads) == 1 else f"{len(leads)} leads"
    count = sum(parameter.numel() for parameter in trained.model.parameters())
    origin = (
        "in the form of the released ECGFounder checkpoints"
        if trained.provenance.get("kind") == "official"
        else "started from an official ECGFounder checkpoint"
        if is_derived(trained)
        else "trained with ecgfounder_train"
    )
    return (
        f"A {trained.model_name} network ({count:,} parameters) that reads {what} of an ECG and "
        f"gives {len(trained.outputs)} outputs; {origin}."
    )


def _input(trained: TrainedModel) -> Iterator[str]:
    profile = trained.of_lead_i().profile
    how = profile.load_normalisation
    yield (
        f"* Signal profile `{profile.name}` (fingerprint `{profile.fingerprint}`), which this "
        "project applies by itself at any sampling rate and length:"
    )
    stages = []
    for stage in profile.stages:
        numbers = profile.stage_parameters.get(stage, {})
        listed = ", ".join(f"{key} {value}" for key, value in numbers.items())
        stages.append(f"{stage} ({listed})" if listed else stage)
    yield f"  {' -> '.join(stages)}"
    yield (
        f"* Network input: leads {', '.join(profile.leads)} in this order, {profile.fs:g} Hz, "
        f"windows of {profile.duration_s:g} s ({profile.num_samples} samples), millivolts, "
        f"normalisation `{how.kind}`"
        + (f" in units of {how.scale_mv:g} mV" if how.kind == "fixed" else "")
        + ("" if how.centre else ", mean not subtracted")
        + "."
    )
    yield (
        f"* Longer records: {profile.windows['policy']} windows; shorter: zeros at the "
        f"{profile.windows['pad']}; below {profile.windows['min_duration_s']:g} s: refused."
    )


def _outputs(trained: TrainedModel, evaluations: Sequence[Evaluated]) -> Iterator[str]:
    quantities = [output for output in trained.outputs if output.kind == "regression"]
    num_binary = len(trained.outputs) - len(quantities)
    if num_binary:
        yield (
            f"{num_binary} logits, one per label of the vocabulary `{trained.vocabulary}`, several "
            "of which may hold at once. sigmoid(logit) is "
            + (
                "uncalibrated; the calibration in `ecg_model.json` makes a probability of it for "
                f"{trained.decisions.calibration.summary} labels."
                if trained.decisions and trained.decisions.calibration.num_calibrated
                else "not calibrated: it ranks records and is not a probability."
            )
        )
    if quantities:
        yield f"{len(quantities)} quantities: value = output x std + mean."
    if trained.decisions is not None:
        yield (
            f"Thresholds ({', '.join(trained.decisions.thresholds)}) and calibration were fitted "
            f"on {trained.decisions.fitted_on} ({trained.decisions.reading}), each only where "
            "10 positive and 10 negative patients are; with other prevalences refit them."
        )
    yield ""
    main = evaluations[0].assessment if evaluations else None
    table = {} if main is None else {row["label"]: row for row in main.table.to_dicts()}
    title = f" AUROC on {evaluations[0].name} (95 %) |" if evaluations else ""
    yield f"| # | output | kind |{title}"
    yield "|---|---|---|" + ("---|" if evaluations else "")
    for number, output in enumerate(trained.outputs[:_MOST_LABELS]):
        kind = output.kind
        if kind == "regression":
            kind = f"regression, {output.unit}: x {output.std:g} + {output.mean:g}"  # type: ignore[assignment]
        cell = f" {_area(table.get(output.name))} |" if evaluations else ""
        yield f"| {number} | {output.name.replace('|', '/')} | {kind} |{cell}"
    if len(trained.outputs) > _MOST_LABELS:
        yield f"\nand {len(trained.outputs) - _MOST_LABELS} more, in `ecg_model.json`."


def _area(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "not evaluated"
    if row["undefined_reason"]:
        return str(row["undefined_reason"])
    if np.isnan(row["auroc_lower"]):
        positives = row["num_positives"]
        shown = f"fewer than {MIN_CELL}" if is_small(positives) else positives
        return f"{row['auroc']:.3f} ({shown} positives: no interval)"
    return f"{row['auroc']:.3f} ({row['auroc_lower']:.3f}-{row['auroc_upper']:.3f})"


def _metrics(
    trained: TrainedModel, evaluations: Sequence[Evaluated], others: Sequence[str]
) -> Iterator[str]:
    if not evaluations:
        yield "These weights were not evaluated before they were exported; nothing is claimed."
    for evaluated in evaluations:
        assessment = evaluated.assessment
        predictions, ranking = assessment.predictions, assessment.ranking
        patients = predictions.num_patients
        yield (
            f"**{evaluated.name}**: {predictions.num_records:,} records"
            + (f" of {patients:,} patients" if patients is not None else "")
            + f", {predictions.num_labels} labels. 95 % intervals are by patient."
        )
        yield ""
        yield from _mean_rows(assessment)
        yield from _decision_rows(assessment)
        reasons = ranking.auroc.reasons
        left_out = sum(reason is not None for reason in reasons)
        if left_out:
            yield (
                f"\n{left_out} of the labels have no interval (too few positive patients, or "
                "none) and are in no mean."
            )
        yield ""
    if others:
        yield (
            f"Left out, as they are of other weights or read windows otherwise: "
            f"{', '.join(others)}."
        )


def _mean_rows(assessment: Assessment) -> Iterator[str]:
    yield "| metric | mean over labels | 95 % interval | labels |"
    yield "|---|---|---|---|"
    means: list[tuple[str, Estimates]] = [
        ("AUROC", assessment.ranking.auroc),
        ("average precision", assessment.ranking.average_precision),
    ]
    for name, estimates in means:
        macro = estimates.macro()
        if macro.num_labels:
            yield (
                f"| {name} | {macro.value:.3f} | {macro.lower:.3f} to {macro.upper:.3f} | "
                f"{macro.num_labels} |"
            )
        else:
            yield f"| {name} | undefined: no label has patients enough | | 0 |"


def _decision_rows(assessment: Assessment) -> Iterator[str]:
    if assessment.decisions is None:
        return
    table = assessment.table
    enough = table.filter(table["num_positives"] >= MIN_POSITIVES)
    for name in ("sensitivity", "specificity"):
        values = enough[name].drop_nans().drop_nulls()
        if len(values):
            mean = values.to_numpy().mean()
            rule = assessment.threshold
            yield f"| {name} at the threshold `{rule}` | {mean:.3f} | | {len(values)} |"


def _limits(trained: TrainedModel) -> Iterator[str]:
    yield (
        "Labels are statements of ECG reports, partly by machines, not confirmed diagnoses; what "
        "readers miss, the network learns to miss."
    )
    if trained.vocabulary in vocabulary_names():
        vocabulary = Vocabulary.load(trained.vocabulary)
        notes = label_notes(vocabulary)
        previous = sum("needs a previous ECG" in note for note in notes.values())
        fragments = sum("fragment" in note for note in notes.values())
        if previous:
            yield (
                f"{previous} labels compare with a previous ECG and cannot be seen in one trace"
                + (f"; {fragments} are fragments of statements." if fragments else ".")
            )
    if "median" in trained.profile.stages:
        yield (
            "The profile subtracts a running median after a high-pass, which distorts ST segment "
            "and T wave: not for judging repolarisation."
        )
    if trained.profile.load_normalisation.kind in ("joint", "per_lead"):
        yield (
            "Records are scaled to unit variance: absolute voltage, which criteria of hypertrophy "
            "rest on, is not seen."
        )
    if any(stage in trained.profile.stages for stage in ("lowpass", "bandpass", "fir_lowpass")):
        yield (
            "What the filters remove (late potentials, pacing spikes, high-frequency notches) is "
            "not seen."
        )
    yield (
        f"Trained on windows of {trained.profile.duration_s:g} s: rhythms that come and go outside "
        "them are missed. Leads in exchange, recordings under movement and devices unlike those "
        "of the training data were not tested unless the metrics say so."
    )


def _biases(evaluations: Sequence[Evaluated]) -> Iterator[str]:
    yield (
        "A network repeats the make-up of its training data: who is recorded in a hospital, and "
        "how carefully a report is read, differ by sex, age, origin and site."
    )
    rows = [
        (evaluated.name, subgroup)
        for evaluated in evaluations
        for subgroup in evaluated.assessment.subgroups
        if subgroup.auroc.macro().num_labels
    ]
    if not rows:
        yield "Differences between groups were not measured for these weights."
        return
    yield ""
    yield "| evaluated on | group | records | macro AUROC (95 %) | the whole set, same labels |"
    yield "|---|---|---|---|---|"
    for name, group in rows:
        macro = group.auroc.macro()
        yield (
            f"| {name} | {group.attribute} {group.value} | {group.num_records:,} | "
            f"{macro.value:.3f} ({macro.lower:.3f}-{macro.upper:.3f}), {macro.num_labels} labels | "
            f"{group.auroc_whole.value:.3f} |"
        )
    yield ""
    yield "Groups that are not listed had too few positive patients, or are not known."


def _provenance(trained: TrainedModel) -> Iterator[str]:
    data = trained.provenance.get("data")
    if isinstance(data, Mapping):
        yield (
            f"* Training data: {data['source']}, {data['records']:,} records "
            f"({data['train_windows']:,} windows in the training part)."
        )
    elif is_derived(trained):
        yield (
            "* Training data of the original, as published: the Harvard-Emory ECG Database, "
            "7.5 million ECGs of 1.3 million patients for development."
        )
    else:
        yield "* Training data: only its fingerprint is known here."
    if is_derived(trained):
        official = trained.provenance.get("official", {})
        listed = ", ".join(f"{key} {value:g}" for key, value in official.items())
        yield (
            "* Weights of ECGFounder (official form)"
            + (", fine-tuned." if trained.provenance.get("kind") == "run" else ".")
            + (f" The file states: {listed}." if listed else "")
        )
    if trained.samples_seen:
        yield f"* Seen in training: {trained.samples_seen:,} samples."
    for name, value in trained.fingerprints.items():
        yield f"* Fingerprint of the {name.replace('_', ' ')}: `{value}`"
    if trained.versions:
        listed = ", ".join(f"{name} {value}" for name, value in trained.versions.items())
        yield f"* Trained with {listed}."
    yield "* No record, identifier, date or path of the training data is in these files."


def _licence(trained: TrainedModel) -> Iterator[str]:
    yield f"{trained.licence[0].upper()}{trained.licence[1:]}."
    if is_derived(trained):
        yield ""
        yield LICENCE_DISCREPANCY


def card_file(folder: Path) -> Path:
    """Return the path of the card."""
    return folder / "README.md"

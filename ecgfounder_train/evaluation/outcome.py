"""What an evaluation writes: predictions, label table, report, page of mistakes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from ecgfounder_train.core.checkout import code_version
from ecgfounder_train.evaluation.assessment import Assessment, assess
from ecgfounder_train.evaluation.evaluation import Evaluated, Evaluation
from ecgfounder_train.evaluation.mistakes import confident_mistakes
from ecgfounder_train.evaluation.report import Strip, write_assessment, write_strips_page
from ecgfounder_train.evaluation.subjects import FileSubject
from ecgfounder_train.evaluation.targets import SplitTarget
from ecgfounder_train.labels.groups import in_group
from ecgfounder_train.metrics.predictions import write_predictions
from ecgfounder_train.weights.decisions import Decisions, reading_of


def write_outcome(evaluation: Evaluation, evaluated: Evaluated) -> Path:
    """Write predictions, label table, report and page of mistakes; return the report's path.

    Raises:
        UserError: A threshold or group is unknown, or a control cannot be made.
    """
    settings, subject, target = evaluation.settings, evaluation.subject, evaluation.target
    folder, remarks = evaluation.folder, list(evaluated.remarks)
    windows = replace(evaluated.windows, provenance=evaluated.provenance)
    write_predictions(folder / "predictions.parquet", windows)
    decisions = evaluation.decisions(evaluated)
    if decisions is None:
        remarks.append(f"Nothing was calibrated and no threshold set: {_undecided(evaluation)}")
    if isinstance(subject, FileSubject) and (settings.controls or settings.scratch):
        remarks.append(
            "The controls were left out: they need the run's shards and its network untrained, "
            "and these are weights without a run."
        )
    notes, groups = target.notes(subject.trained)
    labels = evaluated.predictions.labels
    chosen = in_group([groups.get(label) for label in labels], settings.group)
    if not chosen.all():
        remarks.append(
            f"{int(chosen.sum())} of the {len(chosen)} labels are evaluated here: "
            f"group={settings.group}."
        )
    controls = evaluation.controls()
    assessment = assess(
        evaluated.predictions.of_labels(chosen),
        notes,
        groups,
        decisions,
        settings.threshold,
        {name: other.of_labels(chosen) for name, other in controls.items()},
    )
    return write_assessment(
        folder / "report.html",
        assessment,
        subject.metrics_file,
        f"{subject.kind} {evaluation.called}, {target.title}",
        evaluated.provenance | _settings(evaluation, decisions),
        excluded=target.label_map.excluded if target.label_map else None,
        remarks=remarks,
        mistakes_page=_write_mistakes(evaluation, assessment),
        seen_in_training=_seen_in_training(evaluation),
        flow=_flow(evaluation),
    )


def _seen_in_training(evaluation: Evaluation) -> bool | None:
    """Return whether these are records the weights were trained on; None where nobody can tell.

    The split of an external set is the set's own: it has no record of what the weights were
    trained on, and the overlap check has its own remark.
    """
    if not isinstance(evaluation.target, SplitTarget):
        return False
    if isinstance(evaluation.subject, FileSubject):
        return None
    return evaluation.target.split == "train"


def _flow(evaluation: Evaluation) -> dict[str, int]:
    """Return where the records of the shards went before this evaluation."""
    if not isinstance(evaluation.target, SplitTarget):
        return {}
    totals = evaluation.target.shards.manifest.totals
    return {
        "records found when the shards were built": totals.found,
        "rejected, with a reason": sum(totals.rejected.values()),
        "without any observed label": totals.unlabelled,
        "written to shards, all splits": totals.written,
    }


def _undecided(evaluation: Evaluation) -> str:
    """Return why there are neither thresholds nor calibration."""
    if not isinstance(evaluation.subject, FileSubject):
        return "the run's validation records are not here."
    kept = evaluation.subject.trained.decisions
    if kept is None:
        return "none is kept beside these weights."
    asked = reading_of(evaluation.settings.pool, evaluation.settings.crops, "")
    return f"what is kept beside these weights was fitted for {kept.reading}, not {asked}."


def _settings(evaluation: Evaluation, decisions: Decisions | None) -> dict[str, str]:
    rows = evaluation.settings.summary() | {"commit of the code": code_version()}
    if decisions is not None:
        is_file = isinstance(evaluation.subject, FileSubject)
        place = "kept beside the weights" if is_file else evaluation.decisions_file.name
        rows["thresholds and calibration"] = f"{place}, fitted on {decisions.fitted_on}"
    return rows


def _write_mistakes(evaluation: Evaluation, assessment: Assessment) -> str:
    """Write the page of mistakes; return its name, empty where there is none."""
    limit, path = evaluation.settings.mistakes, evaluation.folder / "mistakes.html"
    found = confident_mistakes(assessment, limit) if limit else []
    if not found:
        path.unlink(missing_ok=True)
        return ""
    strips = []
    predictions, trained = assessment.predictions, evaluation.subject.trained
    for mistake in found:
        key, window = predictions.record_key[mistake.row], predictions.window[mistake.row]
        signal, fs, leads = evaluation.target.signal(trained, str(key), int(window))
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
        "The records on which the model's most confident scores contradict the stated labels, "
        "with the signal as the filters leave it. Some are mistakes of the model, some of the "
        "physician's interpretation."
    )
    title = f"Most confident mistakes of {evaluation.subject.name}"
    write_strips_page(path, strips, title, introduction)
    return path.name

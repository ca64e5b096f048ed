"""One export from its config: load, write the chosen format, measure, write the card."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgfounder_train.core.commands import command
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.files import atomic_file, sha256_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.export import card, hub, official
from ecgfounder_train.export.precision import (
    PrecisionEffect,
    measure_precision,
    synthetic_signals,
)
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.bundle import (
    DESCRIPTION_FILE,
    PRECISIONS,
    WEIGHTS_FILE,
    write_bundle,
)
from ecgfounder_train.weights.checkpoint import resolve_checkpoint
from ecgfounder_train.weights.trained_model import UNSTATED_LICENCE, TrainedModel, choose_device

FORMATS = ("official", "safetensors", "onnx", "hub")
OFFICIAL_FILE = "model.pth"
ONNX_FILE = "model.onnx"
ONNX_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Exported:
    """What was written, and what was measured on the way."""

    folder: Path
    notes: Sequence[str]


def export(config: Mapping[str, Any]) -> Exported:
    """Do what `configs/export.yaml` asks for.

    Raises:
        UserError: A setting is wrong, the weights are unreadable, or the format cannot hold them.
    """
    kind, precision = str(config["format"]), str(config["precision"])
    if kind not in FORMATS:
        raise UserError(f"format={kind!r} is unknown.{did_you_mean(kind, FORMATS)}")
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} is unknown.{did_you_mean(precision, PRECISIONS)}")
    run = RunDirectory.existing(config["paths"]["runs"], config["run"]) if config["run"] else None
    path = resolve_checkpoint(str(config["checkpoint"]), config["paths"]["runs"], config["run"])
    name = str(config["name"] or (run.name if run else path.stem or path.parent.name))
    folder = Path(config["out"] or Path("outputs") / "exports" / f"{name}-{kind}")
    _check_folder(folder, bool(config["overwrite"]))
    device = choose_device(config["device"])
    trained = _with_facts(TrainedModel.load(path), run, config["licence"])
    _refuse_paths(trained.describe())
    notes: list[str] = []
    if precision != "float32":
        effect = _measure(trained, precision, config, run, device)
        notes.append(effect.summary())
        trained.provenance = {**trained.provenance, "stored_precision": effect.to_dict()}
    trained.model.cpu()
    files, usage = _write(trained, kind, folder, precision, config, name, notes)
    evaluations: list[card.Evaluated] = []
    others: list[str] = []
    if run is not None:
        evaluations, others = card.find_evaluations(run, sha256_file(path), trained)
    text = card.write_card(trained, name, files, usage, evaluations, others, notes)
    with atomic_file(card.card_file(folder), "w") as handle:
        handle.write(text)
    if run is not None and not evaluations:
        evaluate = command("evaluate", {"run": run.name}, config["paths"])
        notes.append(
            f"The card has no metrics: run {run.name} has no evaluation of these weights. "
            f"Make one, then export again: {evaluate}"
        )
    if trained.licence == UNSTATED_LICENCE:
        notes.append("The card states no licence: give licence=NAME once you have decided.")
    return Exported(folder, notes)


def _write(
    trained: TrainedModel,
    kind: str,
    folder: Path,
    precision: str,
    config: Mapping[str, Any],
    name: str,
    notes: list[str],
) -> tuple[dict[str, str], list[str]]:
    """Write the weights; return what each file is and how to use it."""
    if kind == "official":
        official.write_official(trained, folder / OFFICIAL_FILE, precision)
        with atomic_file(folder / "tasks.txt", "w") as handle:
            handle.writelines(f"{label}\n" for label in trained.labels)
        files = {
            OFFICIAL_FILE: "dict with `state_dict` under the official names, without optimizer",
            "tasks.txt": "names of the outputs in order",
        }
        usage = [
            "With the official code (`net1d.py` of PKUDigitalHealth/ECGFounder):\n",
            "```python",
            f"model = {official.constructor_call(trained)}",
            f'state = torch.load("{OFFICIAL_FILE}", weights_only=True)["state_dict"]',
            "model.load_state_dict(state, strict=True)",
            "```\n",
            "The official code's own preprocessing is its profile `official`; feed what is "
            "described under Input.\n",
            *_ours(OFFICIAL_FILE),
        ]
        return files, usage
    if kind == "onnx":
        return _write_onnx(trained, folder, precision, config, notes)
    write_bundle(folder, trained.describe(), trained.model.state_dict(), precision)
    files = {
        WEIGHTS_FILE: f"weights, {precision}",
        DESCRIPTION_FILE: "outputs, vocabulary, signal profile, thresholds, calibration, licence",
    }
    usage = _ours(".")
    if kind == "hub":
        hub.write_attributes(folder)
        usage += [
            "\nFrom the hub, once its owner has uploaded the folder (`hf upload ORG/NAME .`):\n",
            "```python",
            "from ecgfounder_train.export.hub import from_pretrained",
            "",
            f'model = from_pretrained("ORG/{name}")  # a local folder is taken offline',
            "table = model.predict(records).to_frame()",
            "```",
        ]
    return files, usage


def _ours(file: str) -> list[str]:
    return [
        "With ecgfounder_train, which applies the signal profile by itself:\n",
        "```bash",
        f"python scripts/predict.py checkpoint={file} input=FOLDER output=predictions.csv",
        "```\n",
        "or in Python:\n",
        "```python",
        "import ecgfounder_train",
        "",
        f'model = ecgfounder_train.load_model("{file}")',
        "table = model.predict(records).to_frame()",
        "```",
    ]


def _write_onnx(
    trained: TrainedModel,
    folder: Path,
    precision: str,
    config: Mapping[str, Any],
    notes: list[str],
) -> tuple[dict[str, str], list[str]]:
    with needs("export", "format=onnx"):
        import onnx

        from ecgfounder_train.export.onnx_graph import build_graph

    model = build_graph(trained, precision, str(config["onnx"]["statistics"]))
    with atomic_file(folder / ONNX_FILE) as handle:
        handle.write(model.SerializeToString())
    if precision == "float32":
        worst = compare_onnx(trained, folder / ONNX_FILE)
        notes.append(f"onnxruntime differs from torch by at most {worst:.1e} in any logit.")
        if not worst <= ONNX_TOLERANCE:
            raise UserError(
                f"The ONNX graph differs from torch by {worst:.1e} in a logit, more than "
                f"{ONNX_TOLERANCE:g}. It was left in {folder} for inspection; do not use it."
            )
    inputs = "".join(
        f"* `{item.name}`: {onnx.helper.printable_type(item.type)}, {item.doc_string}\n"
        for item in model.graph.input
    )
    outputs = ", ".join(f"`{item.name}`" for item in model.graph.output)
    usage = [
        "The load half of the signal profile (masking, normalisation) is inside the graph; the "
        "build half (filters, resampling, windows; see Input) is not. Inputs:\n",
        inputs,
        f"Outputs: {outputs}. Batch and number of samples are free. The metadata entry "
        "`ecg_model` holds labels, profile, thresholds and calibration as JSON.\n",
        "```python",
        f'session = onnxruntime.InferenceSession("{ONNX_FILE}")',
        f'logits = session.run(["logits"], {{{_example(model)}}})[0]',
        "```",
    ]
    return {ONNX_FILE: f"ONNX graph, opset 17, weights {precision}"}, usage


def _example(model: Any) -> str:
    values = {
        "ecg": "ecg",
        "valid_start": "np.zeros(len(ecg), np.int64)",
        "valid_num_samples": "np.full(len(ecg), ecg.shape[2], np.int64)",
        "stats": "stats",
    }
    return ", ".join(f'"{item.name}": {values[item.name]}' for item in model.graph.input)


def compare_onnx(trained: TrainedModel, path: Path) -> float:
    """Return the largest difference of any logit between onnxruntime and torch.

    Over several batch sizes and lengths, with padding, on synthetic signals.
    """
    with needs("export", "The check of an ONNX file"):
        import onnxruntime

    lead_i = trained.of_lead_i()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}
    worst = 0.0
    full = lead_i.profile.num_samples
    for batch_size, length in ((1, full), (3, full // 2 + 1), (2, full - 7)):
        batch = _batch(batch_size, len(lead_i.profile.leads), length)
        signal, _, _ = lead_i.transform(batch, training=False)
        with torch.inference_mode():
            expected = trained.model(signal).numpy()
        feed = {key: batch[key].numpy() for key in ("valid_start", "valid_num_samples")}
        feed["ecg"] = (batch["ecg"].float() / 1000).numpy()
        if "stats" in names:
            feed["stats"] = batch["stats"].numpy()
        found = session.run(["logits"], feed)[0]
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def _batch(batch_size: int, num_leads: int, length: int) -> dict[str, torch.Tensor]:
    """Return synthetic samples as the loader has them; every second one begins with padding."""
    millivolts = synthetic_signals(batch_size, num_leads, length)
    ecg = np.rint(1000 * millivolts).astype(np.int16)
    start = np.where(np.arange(batch_size) % 2, length // 5, 0)
    count = length - start
    stats = np.zeros((batch_size, num_leads, 2), np.float32)
    for row, first in enumerate(start):
        ecg[row, :, :first] = 0
        part = ecg[row, :, first:] / 1000.0
        stats[row] = np.stack([part.mean(1), part.std(1)], 1)
    nothing = torch.zeros(batch_size, 0)
    return {
        "ecg": torch.from_numpy(ecg),
        "stats": torch.from_numpy(stats),
        "valid_start": torch.from_numpy(start),
        "valid_num_samples": torch.from_numpy(count),
        "targets": nothing,
        "observed": nothing,
    }


def _with_facts(
    trained: TrainedModel, run: RunDirectory | None, licence: str | None
) -> TrainedModel:
    """Return the model with what its run knows of the data, and the licence that was given."""
    stated = str(licence) if licence else trained.licence
    if card.is_derived(trained) and licence:
        stated = f"{licence}; {card.LICENCE_DERIVED}"
    elif card.is_derived(trained) and trained.licence == UNSTATED_LICENCE:
        stated = card.LICENCE_DERIVED
    provenance = dict(trained.provenance)
    shards = _training_shards(run)
    if shards is not None and shards.manifest.fingerprint == trained.fingerprints.get("data"):
        provenance["data"] = {
            "source": shards.manifest.source,
            "records": shards.manifest.totals.written,
            "train_windows": len(shards.rows("train")),
        }
    return replace(trained, licence=stated, provenance=provenance)


def _training_shards(run: RunDirectory | None) -> ShardSet | None:
    if run is None:
        return None
    folder = run.read_config().get("shards")
    try:
        return ShardSet.open(folder) if folder else None
    except UserError:
        return None


def _measure(
    trained: TrainedModel,
    precision: str,
    config: Mapping[str, Any],
    run: RunDirectory | None,
    device: torch.device,
) -> PrecisionEffect:
    shards = ShardSet.open(config["shards"]) if config["shards"] else _training_shards(run)
    if shards is not None and not config["shards"] and not len(shards.rows("val")):
        shards = None
    trained.model.to(device)
    return measure_precision(trained, precision, shards, device, config["batch_size"])


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.suffix in (".pth", ".onnx", ".safetensors", ".json"):
        raise UserError(f"out={folder} is the name of a file; out= is the folder of the export.")
    if folder.is_file():
        raise UserError(f"out={folder} is a file.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(
            f"out={folder} is not empty. Choose another folder, or overwrite=true to replace the "
            "files of the same names."
        )


def _refuse_paths(description: Mapping[str, Any]) -> None:
    """Raise if anything that is about to be published names a place on this machine.

    Raises:
        UserError: Names the entry.
    """
    for where, text in _strings(description, ""):
        if Path(text).is_absolute() or str(Path.home()) in text:
            raise UserError(
                f"The weights carry a path of this machine in {where} ({text}); it would be "
                "published with them. Remove it from the checkpoint's spec."
            )


def _strings(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _strings(item, f"{where}[{number}]")

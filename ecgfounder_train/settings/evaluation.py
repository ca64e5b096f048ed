"""Keys of the verbs that use weights or shards: evaluate, predict, export, verify, runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ecgfounder_train.core.config import LARGEST_SEED, Section, section, setting

DEVICES = ("auto", "cpu", "cuda")
THRESHOLDS = ("youden", "f1", "sensitivity_90", "specificity_90", "half")
CALIBRATIONS = {"isotonic": "Platt below 100 positives", "platt": "", "none": ""}
WINDOW_POLICIES = ("consecutive", "centre", "first")


@dataclass(frozen=True)
class ExternalSettings(Section, name="external"):
    """An external data set."""

    name: str | None = setting(
        None, "which label maps apply (ptbxl, cinc2017, ...); set by experiment=eval_*"
    )
    native_labels: Sequence[str] = setting(
        [], "vocabularies that read this set's statements without a map"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(Section, name=""):
    """Keys of `evaluate`."""

    run: str | None = setting(None, "name of the run; null: checkpoint is a path of weights")
    compare: Sequence[str] | None = setting(
        None, "names of two or more runs: a page that tests them against the first"
    )
    average: Sequence[str] | None = setting(
        None, "names of further runs: each logit is the mean of theirs and of run's"
    )
    checkpoint: str = setting(
        "best", "best | last | path of a checkpoint, an export or the official file"
    )
    split: str | None = setting(
        None,
        "null: test if the shards have one, else val (external: everything)",
        choices=("train", "val", "test"),
    )
    shards: str | None = setting(
        None, "folder of shards, or a URL with cache_dir; null: those the run was trained on"
    )
    cache_dir: str | None = setting(
        None, "folder for copies of shards behind a URL; null: the run's own"
    )
    cache_bytes: float = setting(100e9, "largest size of all copies", unit="bytes", above=0)
    out: str | None = setting(
        None, "folder of the evaluation; null: in the run, or outputs/evaluations/STEM"
    )
    pool: str = setting(
        "mean",
        "how logits of several windows of a record become one",
        choices=("mean", "max", "none"),
    )
    windows: str | None = setting(
        None,
        "how longer records of an external set are cut; null: as trained",
        choices=WINDOW_POLICIES,
    )
    crops: int = setting(
        1, "pieces per window, their logits averaged (4 of 10 s: the 2.5 s protocol)", at_least=1
    )
    group: str | None = setting(
        None, "group of the vocabulary's labels that is reported alone; not:GROUP: all others"
    )
    threshold: str = setting("youden", "threshold rule of decisions", choices=THRESHOLDS)
    calibration: str = setting("isotonic", choices=CALIBRATIONS)
    controls: bool = setting(False, "true: compare with an untrained network with a linear probe")
    scratch: str | None = setting(
        None, "name of a run of the same network trained from scratch, as a further control"
    )
    mistakes: int = setting(
        12, "ECGs on the page of the most confident mistakes; 0: no page", at_least=0
    )
    map: str = setting("ours", "label map of an external set: ours | published | path of a CSV")
    secret: str | None = setting(
        None, "key file for an external set; null: the training shards' own, else a new one"
    )
    batch_size: int = setting(64, "ECGs per forward pass", at_least=1)
    device: str = setting("auto", choices=DEVICES)
    external: ExternalSettings = section(ExternalSettings)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Section, name=""):
    """Keys of `predict` that do not choose the weights."""

    input: str = setting(comment="folder, glob, file, or list of files (CSV)")
    output: str = setting("predictions.csv", "table to write, .csv or .parquet")
    output_kind: str = setting(
        "probabilities",
        choices={
            "probabilities": "",
            "logits": "",
            "embeddings": "the features before the last layer",
        },
    )
    threshold: str | None = setting(
        "youden", "threshold rule of yes/no; null: none", choices=THRESHOLDS
    )
    windows: str | None = setting(
        None,
        "how longer recordings are cut; null: as the model was trained",
        choices=WINDOW_POLICIES,
    )
    min_duration_s: float | None = setting(
        None,
        "shorter recordings are rejected; null: as the model was trained",
        unit="s",
        at_least=0,
    )
    pool: str = setting(
        "mean", "how outputs of several windows of a recording become one", choices=("mean", "max")
    )
    derive_leads: bool = setting(
        True, "compute absent limb leads from two others (reported in warnings)"
    )
    input_fs: float | None = setting(
        None, "sampling rate of files that do not state theirs", unit="Hz", above=0
    )
    input_unit: str | None = setting(
        None, "unit of the numbers, whatever the files state", choices=("mV", "uV", "nV", "V")
    )
    input_leads: Sequence[str] | None = setting(
        None, "names in stored order, whatever the files state, such as [I,II,V1]"
    )
    strips: str | None = setting(None, "folder for a readable page per recording")
    max_strips: int = setting(100, "recordings with such a page", at_least=0)
    batch_size: int = setting(32, "windows per forward pass", at_least=1)
    num_workers: int = setting(2, "threads that read and filter ahead of the network", at_least=0)
    precision: str | int = setting(
        32,
        choices={
            "32": "",
            "bf16": "faster on processors that have it; docs/predict.md states what it changes",
        },
    )
    part_size: int = setting(
        2000, "recordings per part; whole parts survive an interruption", at_least=1
    )
    per_window: bool | None = setting(
        None,
        "a row per window, with its start in s, in STEM.windows.csv|.parquet; null: of recordings "
        "over 10 minutes",
    )


@dataclass(frozen=True, kw_only=True)
class PredictSettings(PredictOptions, name=""):
    """Keys of `predict`."""

    checkpoint: str = setting(comment="path of weights; with run=NAME also best | last")
    run: str | None = setting(None, "name of a run, for checkpoint=best | last")
    device: str = setting("auto", choices=DEVICES)


@dataclass(frozen=True)
class OnnxSettings(Section, name="onnx"):
    """The ONNX graph."""

    statistics: str = setting(
        "auto",
        choices={
            "auto": "inside the graph where the profile allows",
            "input": "always fed as `stats`",
        },
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Section, name=""):
    """Keys of `export`."""

    run: str | None = setting(
        None, "name of a run, for checkpoint=best | last and for the card's metrics"
    )
    checkpoint: str = setting("best", "best | last of the run, or the path of any weights")
    format: str = setting("safetensors", choices=("official", "safetensors", "onnx", "hub"))
    out: str | None = setting(None, "folder to write; null: outputs/exports/NAME-FORMAT")
    name: str | None = setting(None, "name on the model card; null: the run's or the file's")
    licence: str | None = setting(
        None, "of the weights, such as MIT; null: what the weights state, else unstated"
    )
    precision: str = setting(
        "float32",
        "of the stored weights; computing stays float32",
        choices=("float32", "float16", "bfloat16"),
    )
    shards: str | None = setting(
        None, "folder whose validation split measures half precision; null: the run's own"
    )
    overwrite: bool = setting(
        False, "replace files of the same names in a folder that is not empty"
    )
    batch_size: int = setting(64, "ECGs per forward pass", at_least=1)
    device: str = setting("auto", "for measuring half precision", choices=DEVICES)
    onnx: OnnxSettings = section(OnnxSettings)


@dataclass(frozen=True, kw_only=True)
class RunsSettings(Section, name=""):
    """Keys of `runs`."""

    state: str | None = setting(
        None,
        "only runs in this state; null: all",
        choices=("training", "complete", "stopped", "failed", "stale"),
    )
    format: str = setting("table", choices=("table", "csv", "json"))
    stale_after_s: float = setting(
        1800.0,
        "time without a sign of life after which a run of another machine is stale",
        unit="s",
        above=0,
    )


@dataclass(frozen=True, kw_only=True)
class VerifySettings(Section, name=""):
    """Keys of `verify`."""

    shards: str = setting(comment="folder that scripts/prepare.py wrote")
    sample: int | None = setting(
        None,
        "random samples to read, without whole-file checksums; null: every byte",
        at_least=1,
    )
    seed: int = setting(0, "seed of the random samples", at_least=0, at_most=LARGEST_SEED)
    private: str | None = setting(
        None, "folder with the rejects ledger and the plan; null: SHARDS.private if it exists"
    )
    rebuild: Any = setting(
        None, "shards to rebuild first: a list of numbers or names, or damaged; null: none"
    )
    root: str | None = setting(
        None, "archive to rebuild from, if it has moved since prepare; null: where it was"
    )
    storage_options: Mapping[str, Any] = setting(
        {}, "of a root that is a URL, as fsspec takes them"
    )
    audit: bool = setting(False, "look for leakage instead of damage")
    against: str | None = setting(
        None, "shards of an external test set to compare train and val with; null: none"
    )
    min_correlation: float = setting(
        0.95,
        "correlation (3 to 15 Hz, all leads) from which two recordings are near-identical",
        above=0,
        at_most=1,
    )
    pairs: str | None = setting(
        None, "CSV for all pairs found; null: only the first 20 are printed"
    )

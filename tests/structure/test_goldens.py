"""What persists does not change: keys, order, splits, shards, plans, checkpoints, fingerprints.

Each function below computes one golden from the current code; the test compares it with the file of
its name in `goldens/`. A golden changes only on purpose, in a commit that says why. This rewrites
all of them, or those named:

    PYTHONPATH=.:tests python tests/structure/test_goldens.py [NAME ...]
"""

import atexit
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tiny_set as tiny
import torch
from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config, manual_page
from ecgfounder_train.catalog import build_catalog
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.finetuning.task import Task
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.labels.maps import LabelMap
from ecgfounder_train.loader.epoch_plan import BlockPlan, EpochPlan
from ecgfounder_train.loader.patients import patient_rows
from ecgfounder_train.models import create_model, model_names
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.records.sources import RECORD_COLUMNS, SourceTable
from ecgfounder_train.splits import PatientSplit
from ecgfounder_train.training.pretrain import train
from ecgfounder_train.weights.checkpoint import newest_whole
from ecgfounder_train.weights.trained_model import TrainedModel

GOLDENS = Path(__file__).parent / "goldens"
CONFIGS = tiny.REPOSITORY / "configs"
MAPS = tiny.REPOSITORY / "ecgfounder_train" / "labels" / "maps"
TOLERANCE = 2e-3
"""Of logits after a short training; processors add in different orders."""
_SHOWN = 12


def keys() -> dict[str, str]:
    """Return the pseudonyms of one record and one patient under a fixed secret."""
    return {
        "secret": tiny.SECRET.fingerprint,
        "record": tiny.SECRET.record_key("heedb", "de_123456789_20190317"),
        "record with a letter beyond ASCII": tiny.SECRET.record_key("heedb", "für_1"),
        "patient": tiny.SECRET.patient_key("heedb", "123456789"),
    }


def catalog() -> dict[str, Any]:
    """Return the rows of a catalog in order, with every kind of rejected or merged record."""
    rows = [
        {
            "record_path": f"S{number % 2}/r{number * 7 % 20:02d}",
            "record_id": f"r{(number if number != 5 else 4) * 7 % 20:02d}",
            "patient_id": None if number == 3 else str(100 + number // 2),
            "site": f"S{number % 2}",
            "year": 2010 + number,
            "age_years": 20.0 + 5 * number,
            "sex": ("F", "M", None)[number % 3],
            "statements": None if number == 6 else ["22", "371"] if number % 2 else ["19", "19999"],
        }
        for number in range(20)
    ]
    records = pl.DataFrame(
        [{**dict.fromkeys(RECORD_COLUMNS), **row} for row in rows], schema=RECORD_COLUMNS
    )
    merges = pl.DataFrame({"from": ["101", "105"], "to": ["102", "106"]})
    table = SourceTable(records.lazy(), Path(), merges, {"rows": len(rows)})
    built = build_catalog(
        table, Vocabulary.load("ecgfounder150"), tiny.SECRET, PatientSplit(), source_name="golden"
    )
    packed = pl.col("labels", "observed").bin.encode("hex")
    shown = built.frame.with_columns(packed, pl.col(pl.Categorical).cast(pl.String))
    return {
        "columns": built.frame.columns,
        "rows": [[str(value) for value in row] for row in shown.rows()],
        "summary": {key: built.summary[key] for key in ("found", "unlabelled", "rejected")},
        "fingerprints": dict(built.fingerprints),
    }


def split() -> dict[str, Any]:
    """Return the split of the first patients, and a hash of 2,000, for each way of splitting."""
    hashes = np.arange(2000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    records = pl.DataFrame(
        {
            "patient_hash": hashes,
            "canonical_hash": hashes,
            "split": [("train", "val", "test", None)[number % 4] for number in range(2000)],
            "site": [("S0001", "I0006")[number % 2] for number in range(2000)],
            "year": [2005 + number % 17 for number in range(2000)],
        }
    ).with_columns(pl.col("year").cast(pl.Int32))
    rules = {
        "patient_hash": PatientSplit(),
        "patient_hash, seed 1": PatientSplit(seed=1),
        "official": PatientSplit(kind="official"),
        "site": PatientSplit(kind="site", test_sites=["I0006"]),
        "year": PatientSplit(kind="year", test_from_year=2018),
    }
    golden = {}
    for name, rule in rules.items():
        assigned = [str(value) for value in rule.assign(records).parts]
        golden[name] = {"first": assigned[:_SHOWN], "all": _hash(assigned)}
    return golden


def shards() -> dict[str, Any]:
    """Return the manifest of a small build, and the hash of its index file."""
    folder = _trained_set() / "shards"
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["package_version"]
    index = hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest()
    return {"manifest": manifest, "index": index}


def plan() -> dict[str, Any]:
    """Return the order of two epochs in each kind of plan, and a share of the patients."""
    plans = {
        "global": EpochPlan(1000, 7, "data"),
        "whole batches": EpochPlan(1000, 7, "data", 64),
        "blocks": BlockPlan(1000, 7, "data", 0, (100,) * 10, 3),
    }
    golden: dict[str, Any] = {}
    for name, each in plans.items():
        order = [each.samples_at(epoch, np.arange(1000)).tolist() for epoch in (0, 1)]
        golden[name] = {"name": each.name, "first": order[0][:_SHOWN], "all": _hash(order)}
    opened = tiny.ShardSet.open(_trained_set() / "shards")
    for fraction in (0.25, 0.5):
        golden[f"share {fraction}"] = patient_rows(opened, fraction, 0).tolist()
    return golden


def checkpoint() -> dict[str, Any]:
    """Return the names of everything in a checkpoint, and the fingerprints it holds."""
    content = _checkpoint()
    # The command line's keys are pinned by `help`; hardware differs between machines.
    spared = {"config", "hardware"}
    names = sorted({name for name in _names(content) if name.split(".")[0] not in spared})
    return {"names": names, "spec": content["spec"], "fingerprints": content["fingerprints"]}


def fingerprints() -> dict[str, Any]:
    """Return the fingerprint of every choice of the groups that are hashed, of maps and tasks."""
    base = ["source.root=unread", "shards=unread"]
    signal, labels, splits = {}, {}, {}
    for name in _choices("signal"):
        profile = SignalProfile.from_config(_section("prepare", "signal", name, base))
        signal[name] = [profile.fingerprint, profile.build_fingerprint]
    for name in _choices("labels"):
        config = _section("prepare", "labels", name, base)
        labels[name] = Vocabulary.from_config(config).fingerprint
    for name in _choices("split"):
        if name != "patient_list":  # it reads a file
            config = _section("prepare", "split", name, base)
            splits[name] = PatientSplit.from_config(config).fingerprint
    tasks = {}
    for name in _choices("task"):
        if name not in ("table", "ptbxl"):  # bases without targets
            config = _section("finetune", "task", name, ["run=unread", "checkpoint=unread"])
            tasks[name] = Task.from_config(config).fingerprint
    maps = {}
    for path in sorted(MAPS.glob("*.*.csv")):
        vocabulary, data_set = path.stem.split(".")
        known = Vocabulary.load(vocabulary).labels
        maps[path.stem] = LabelMap.load(data_set, vocabulary, known).fingerprint
    return {"signal": signal, "labels": labels, "split": splits, "task": tasks, "map": maps}


def models() -> dict[str, Any]:
    """Return a hash of the names and shapes of each network's state dict, and its size."""
    golden = {}
    with torch.device("meta"):
        for name in model_names():
            for norm in ("none", "batch"):
                state = create_model(name, norm=norm).state_dict()
                shapes = [[key, list(value.shape)] for key, value in state.items()]
                count = sum(value.numel() for value in state.values())
                golden[f"{name}, norm {norm}"] = [_hash(shapes), len(shapes), count]
    return golden


def predictions() -> dict[str, Any]:
    """Return the logits of a tiny run on its test split."""
    path = newest_whole(RunDirectory.existing(_trained_set() / "runs", "golden"))
    assert path is not None
    opened = tiny.ShardSet.open(_trained_set() / "shards")
    trained = TrainedModel.load(path)
    found = predict_split(trained, opened, "test", torch.device("cpu"), 16, "golden")
    return {
        "record_key": list(found.record_key),
        "logits": np.round(found.logits.astype(float), 5).tolist(),
        "targets": found.targets.tolist(),
        "observed": found.observed.tolist(),
    }


def help() -> dict[str, dict[str, str]]:  # the golden is named like the option
    """Return the default of every key that `--help` of each script shows."""
    golden = {}
    value = r"""\[[^]]*\]|\{[^}]*\}|"[^"]*"|'[^']*'|\S*"""
    line = re.compile(rf"^ {{4,8}}(?P<key>[a-z_][\w.]*)=(?P<value>{value})( |$)")
    for script in sorted((tiny.REPOSITORY / "scripts").glob("*.py")):
        page = manual_page(script.stem).split("\nKEYS", 1)[1]
        found = [match for text in page.splitlines() if (match := line.match(text))]
        golden[script.stem] = {match["key"]: match["value"] for match in found}
    return golden


COMPUTED: dict[str, Callable[[], Any]] = {
    function.__name__: function
    for function in (
        keys, catalog, split, shards, plan, checkpoint, fingerprints, models, predictions, help,
    )
}  # fmt: skip


@cache
def _trained_set() -> Path:
    """Return a folder with an archive, its shards, and a run of one epoch on them."""
    base = Path(tempfile.mkdtemp(prefix="goldens-"))
    atexit.register(shutil.rmtree, base)
    table = tiny.write_archive(base / "archive", num_records=40)
    built = tiny.build(table, base / "archive", base / "shards")
    assert train(tiny.tiny_config(built, base / "runs", "golden", "budget.max_epochs=1")) == 0
    return base


@cache
def _checkpoint() -> dict[str, Any]:
    path = newest_whole(RunDirectory.existing(_trained_set() / "runs", "golden"))
    assert path is not None
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def _names(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all leaves; numbered ones (parameters, groups) share a name."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            name = "*" if isinstance(key, int) else str(key)
            yield from _names(inner, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _section(verb: str, group: str, choice: str, more: list[str]) -> dict[str, Any]:
    config = compose_config(verb, [*more, f"{group}={choice}"])
    section = OmegaConf.to_container(config[group], resolve=True)
    assert isinstance(section, dict)
    return {str(key): value for key, value in section.items()}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


@pytest.mark.parametrize("name", COMPUTED)
def test_nothing_persistent_changes(name: str) -> None:
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    computed = _plain(COMPUTED[name]())
    if name == "predictions":
        golden_logits, logits = golden.pop("logits"), computed.pop("logits")
        np.testing.assert_allclose(logits, golden_logits, atol=TOLERANCE)
    assert computed == golden


if __name__ == "__main__":
    for chosen in sys.argv[1:] or COMPUTED:
        text = json.dumps(COMPUTED[chosen](), indent=1, ensure_ascii=False) + "\n"
        (GOLDENS / f"{chosen}.json").write_text(text)

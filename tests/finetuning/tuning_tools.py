"""Tables of answers for the tiny archive, and the arguments that train on them in a second."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import OmegaConf

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.run_directory import RunDirectory

Rows = list[dict[str, Any]]
Tune = Callable[..., RunDirectory]


class Place(NamedTuple):
    """Where the parts of a test lie."""

    records: Path
    table: Path
    cache: Path
    checkpoint: Path


def rows_of(catalog: Any) -> Rows:
    """Return a row per record; `fast` and `slow` show in the signal, `amount` counts what does."""
    rows: Rows = []
    for number, row in enumerate(catalog.iter_rows(named=True)):
        flags = np.unpackbits(np.frombuffer(row["labels"], np.uint8))[:5]
        codes = ["I48.0"] * int(flags[4]) + ["i50.1"] * int(flags[0]) + ["Z00"]
        rows.append(
            {
                "record": row["record_path"],
                "patient": f"p{number // 2}",  # two records each
                "fast": int(flags[4]),
                "slow": int(flags[0]),
                "amount": "" if number % 9 == 4 else round(10 + 3.0 * float(flags.sum()), 1),
                "codes": ";".join(codes),
                "part": ("train", "train", "val", "test")[number // 2 % 4],
            }
        )
    return rows


def write_table(path: Path, rows: Rows) -> Path:
    """Write a CSV."""
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def arguments_of(place: Place, runs: Path, run: str, *more: str) -> list[str]:
    """Return the arguments of scripts/finetune.py for a tiny run; later ones win."""
    arguments = [
        "task=table",
        f"task.table={place.table}",
        f"task.records={place.records}",
        "task.kind=binary",
        "task.targets=[fast]",
        "task.split_column=part",
        f"checkpoint={place.checkpoint}",
        f"cache={place.cache}",
        f"paths.runs={runs}",
        f"run={run}",
        "trainer=cpu",
        "trainer.num_threads=1",
        "data.global_batch_size=16",
        "budget.max_epochs=2",
        "min_samples=0",
        "log_every_steps=1",
        "calibration=platt",
    ]
    last = {argument.split("=")[0]: argument for argument in [*arguments, *more]}
    return list(last.values())


def composed(arguments: list[str]) -> dict[str, Any]:
    """Return the composed config, for calling `finetune` in this process."""
    plain = OmegaConf.to_container(compose_config("finetune", arguments), resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}

"""Label-efficiency curve: one run per share of the training patients, initialisation and seed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from ecgfounder_train import __version__
from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.figures import (
    Cell,
    Column,
    EfficiencyCurve,
    HtmlPage,
    Undefined,
    WithInterval,
    efficiency_figure,
    figure_png,
)
from ecgfounder_train.finetuning.outcome import summary
from ecgfounder_train.finetuning.session import Finetuning

INITS = ("pretrained", "scratch", "untrained")
_IN_WORDS = {
    "pretrained": "pretrained, {mode}",
    "scratch": "from scratch",
    "untrained": "untrained + linear probe",
}
COLUMNS: dict[str, Any] = {
    "init": pl.String,
    "label_fraction": pl.Float64,
    "seed": pl.Int64,
    "num_train_patients": pl.Int64,
    "num_train_windows": pl.Int64,
    "metric": pl.String,
    "value": pl.Float64,
    "lower": pl.Float64,
    "upper": pl.Float64,
    "num_outputs": pl.Int64,
    "run": pl.String,
}


def label_efficiency(config: Mapping[str, Any]) -> int:
    """Run or complete every member, then write table, figure and page; return the exit code.

    Each member is an ordinary run that resumes by itself; the same command continues with what is
    missing.

    Raises:
        UserError: A list is empty or holds something unknown, or several devices are asked for.
    """
    members = list(_members(config))
    results = []
    for number, (init, member) in enumerate(members, start=1):
        session = Finetuning(member)
        if session.trainer.world_size > 1:
            raise UserError(
                "label_fractions= trains one run after the other in one process: use one device, "
                "or start the members singly (--multirun label_fraction=0.01,0.1 ...)."
            )
        print(f"Member {number} of {len(members)}: {session.run.name}", flush=True)
        if code := session.train():
            return code
        result = session.report()
        print(summary(result), flush=True)
        results.append(_row(init, member, result))
    table = pl.DataFrame(results, schema=COLUMNS)
    run = RunDirectory.of(config["paths"]["runs"], config["run"])
    print(f"Report: {_write(run, table, config)}")
    return 0


def _members(config: Mapping[str, Any]) -> Sequence[tuple[str, dict[str, Any]]]:
    fractions = [float(value) for value in _listed(config, "label_fractions")]
    seeds = [int(value) for value in _listed(config, "seeds")]
    inits = [str(value) for value in _listed(config, "inits")]
    for init in inits:
        if init not in INITS:
            raise UserError(f"inits: {init!r} is unknown.{did_you_mean(init, INITS)}")
    if "pretrained" in inits and config["checkpoint"] in (None, "none"):
        raise UserError("inits=[pretrained] needs a checkpoint; checkpoint=none has no weights.")
    members = []
    for init in inits:
        changes: dict[str, Any] = {} if init == "pretrained" else {"init": "random"}
        if init == "untrained":
            changes["mode"] = "linear_probe"
        if init == "scratch":
            optimizer = {**config["optimizer"], "lr": float(config["scratch_lr"])}
            changes |= {"mode": "full", "layer_decay": 1.0, "optimizer": optimizer}
        for fraction in sorted(set(fractions)):
            for seed in sorted(set(seeds)):
                name = f"{config['run']}-{init}-{fraction:g}-s{seed}"
                resume = {"checkpoint": "auto", "allow": []}
                own = {"run": name, "label_fraction": fraction, "seed": seed, "resume": resume}
                members.append((init, {**config, **changes, **own, "label_fractions": None}))
    return members


def _listed(config: Mapping[str, Any], key: str) -> list[Any]:
    values = config[key] if isinstance(config[key], list) else [config[key]]
    if not values or None in values:
        raise UserError(f"{key} is empty. Give a list, such as {key}=[1].")
    return values


def _row(init: str, member: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    score = result["score"]
    return {
        "init": init,
        "label_fraction": member["label_fraction"],
        "seed": member["seed"],
        "num_train_patients": result["num_train_patients"],
        "num_train_windows": result["num_train_windows"],
        "metric": score["metric"],
        "value": score["value"],
        "lower": score["lower"],
        "upper": score["upper"],
        "num_outputs": score["num_labels"],
        "run": member["run"],
    }


def _write(run: RunDirectory, table: pl.DataFrame, config: Mapping[str, Any]) -> Any:
    run.path.mkdir(parents=True, exist_ok=True)
    metric = str(table["metric"][0])
    names = {
        name: words.format(mode=str(config["mode"]).replace("_", " "))
        for name, words in _IN_WORDS.items()
    }
    figure = efficiency_figure(
        [
            _curve(names[str(init)], part)
            for (init,), part in table.group_by("init", maintain_order=True)
        ],
        f"{metric} on the test split",
    )
    with atomic_file(run.path / "label_efficiency.csv") as handle:
        write_frame(table, handle)
    with atomic_file(run.path / "label_efficiency.png") as handle:
        handle.write(figure_png(figure))
    page = HtmlPage(
        f"Label efficiency of {run.name}",
        f"{metric} on one test split, by the share of training patients whose labels were used",
    )
    page.section("Summary")
    page.bullets(_findings(table, names))
    page.figure(figure, "Lines: mean over seeds. Points: single runs.")
    page.section("Means over seeds")
    page.table(
        [
            Column("start"),
            Column("share", ".1%"),
            Column("patients", ",d"),
            Column("runs", "d"),
            Column(metric, ".3f", "mean over seeds"),
            Column("lowest", ".3f"),
            Column("highest", ".3f"),
        ],
        [_mean_row(names, part) for part in _by_share(table)],
        "The spread over seeds: other patients, other order, other fresh weights.",
    )
    page.section("Every run")
    page.table(
        [
            Column("run"),
            Column("start"),
            Column("share", ".1%"),
            Column("patients", ",d"),
            Column("windows", ",d"),
            Column(metric, ".3f", "with its 95 % interval by test patient"),
        ],
        [
            [
                row["run"],
                names[row["init"]],
                row["label_fraction"],
                row["num_train_patients"],
                row["num_train_windows"],
                _cell(row),
            ]
            for row in table.iter_rows(named=True)
        ],
        "95 % intervals by patient of the test split.",
    )
    page.section("Method")
    page.bullets(
        [
            "Smaller shares are parts of the larger ones of the same seed; patients, not records, "
            "are drawn.",
            "Validation and test parts are whole at every share; checkpoints are chosen on "
            "validation, the test split is read once per run.",
            "The interval of a run is that of its test patients; the spread over seeds is that of "
            "the training. Neither contains the other.",
        ]
    )
    path = run.path / "label_efficiency.html"
    return page.write(path, f"ecgfounder_train {__version__}. Research use only.")


def _by_share(table: pl.DataFrame) -> list[pl.DataFrame]:
    return [p for _, p in table.group_by("init", "label_fraction", maintain_order=True)]


def _curve(name: str, part: pl.DataFrame) -> EfficiencyCurve:
    known = part.drop_nulls("value")
    means = known.group_by("label_fraction").agg(pl.col("value").mean()).sort("label_fraction")
    return EfficiencyCurve(
        name,
        means["label_fraction"].to_numpy(),
        means["value"].to_numpy(),
        known.select("label_fraction", "value").to_numpy().astype(np.float64),
    )


def _mean_row(names: Mapping[str, str], part: pl.DataFrame) -> list[Cell]:
    known = part["value"].drop_nulls()
    numbers: list[Cell] = (
        [float(known.mean()), float(known.min()), float(known.max())]  # type: ignore[arg-type]
        if len(known)
        else [Undefined("undefined in every run")] * 3
    )
    return [
        names[str(part["init"][0])],
        float(part["label_fraction"][0]),
        int(part["num_train_patients"][0]),
        part.height,
        *numbers,
    ]


def _cell(row: Mapping[str, Any]) -> Cell:
    if row["value"] is None:
        return Undefined("no label has both classes in the test split")
    if row["lower"] is None:
        mean = row["metric"].startswith("mean")
        why = "mean of several quantities" if mean else "too few test patients"
        return WithInterval(row["value"], np.nan, np.nan, why)
    return WithInterval(row["value"], row["lower"], row["upper"])


def _findings(table: pl.DataFrame, names: Mapping[str, str]) -> list[str]:
    metric, shares = table["metric"][0], sorted(table["label_fraction"].unique())
    lines = []
    for share in (shares[0], shares[-1]) if len(shares) > 1 else shares:
        parts = [p for p in _by_share(table) if p["label_fraction"][0] == share]
        known = [(names[str(p["init"][0])], p["value"].drop_nulls().to_numpy()) for p in parts]
        listed = ", ".join(f"{name} {float(v.mean()):.3f}" for name, v in known if len(v))
        lines.append(f"With {share:.0%} of the training patients: {listed} ({metric}).")
    return lines

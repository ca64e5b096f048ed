"""A search of settings with Optuna; each trial is an ordinary run, and the study a file.

The study is a journal in `paths.ablations/NAME/search.journal`. Stopped, it goes on where it was: a
trial that was being trained is resumed under its own name before a new one is drawn.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from ecgfounder_train.ablation.plan import Ablation, Member, compose_member, merged
from ecgfounder_train.ablation.running import train_in_process
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.training.signals import stop_on_signals

_PARAMETER = re.compile(r"(?P<key>[\w.]+)=(?P<kind>log|linear|one_of)\((?P<values>[^()]+)\)")


def search_settings(config: Mapping[str, Any]) -> int:
    """Run trials until there are `search.trials`, print the best, and return the exit code.

    Args:
        config: The composed `configs/ablate.yaml`; the axes play no part but their first choices.

    Raises:
        UserError: The configuration is invalid.
    """
    if config["shards"] is None:
        raise UserError(
            "ablate.py sweep needs shards=DIR: the folder that scripts/prepare.py wrote."
        )
    ablation = Ablation.from_config(config)
    distributions = parse_parameters(config["search"]["parameters"])
    folder = Path(config["paths"]["ablations"]) / ablation.name
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=ablation.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "search.journal"))),
        sampler=optuna.samplers.TPESampler(seed=config["search"]["seed"]),
        direction="maximize",
        load_if_exists=True,
    )
    with stop_on_signals() as stop:
        while True:
            over = sum(t.state in (TrialState.COMPLETE, TrialState.FAIL) for t in study.trials)
            if over >= config["search"]["trials"]:
                break
            trial = _open_trial(study, distributions)
            member = _member(ablation, trial)
            shown = ", ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
                              for key, value in trial.params.items())  # fmt: skip
            print(f"[{over + 1}/{config['search']['trials']}] {member.name}: {shown}", flush=True)
            settings = compose_member(member, member.arguments)
            status = train_in_process(member.arguments, stop)
            if stop.signal is not None:
                print("Stopped; run the same command again to go on.", flush=True)
                return stop.exit_code
            value = _last_value(settings, member.name) if status == 0 else None
            if value is None:
                study.tell(trial.number, state=TrialState.FAIL)
                print(f"{member.name} failed and counts as a trial without a value.", flush=True)
            else:
                study.tell(trial.number, value)
    return _summary(study, folder)


def parse_parameters(items: Sequence[str]) -> dict[str, BaseDistribution]:
    """Return Optuna's distributions for `KEY=log(LOW,HIGH)`, `linear(...)` and `one_of(...)`.

    Raises:
        UserError: An item is none of these.
    """
    found: dict[str, BaseDistribution] = {}
    for item in items:
        match = _PARAMETER.fullmatch(str(item).replace(" ", ""))
        try:
            if match is None:
                raise ValueError("it has another form")
            values = match["values"].split(",")
            if match["kind"] == "one_of":
                found[match["key"]] = CategoricalDistribution(values)
                continue
            low, high = map(float, values)
            found[match["key"]] = FloatDistribution(low, high, log=match["kind"] == "log")
        except ValueError as error:
            raise UserError(
                f"search.parameters: cannot read {item!r} ({error}). Forms: KEY=log(LOW,HIGH), "
                "KEY=linear(LOW,HIGH), KEY=one_of(A,B)."
            ) from error
    if not found:
        raise UserError("search.parameters is empty: there is nothing to search.")
    return found


def _open_trial(study: optuna.Study, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Return the trial that was being trained when the search stopped, else a new one."""
    for trial in study.trials:
        if trial.state is TrialState.RUNNING and trial.params.keys() == distributions.keys():
            return trial
    number = study.ask(dict(distributions)).number
    return study.trials[number]


def _member(ablation: Ablation, trial: FrozenTrial) -> Member:
    name = f"{ablation.name}__trial{trial.number:04d}"
    first = [argument for axis in ablation.axes for argument in axis.choices[0].arguments]
    budget = ablation.budget.samples
    if budget is None:
        raise UserError("ablate.py sweep needs ablation.budget.samples.")
    drawn = [f"{key}={value}" for key, value in trial.params.items()]
    arguments = merged(
        [*ablation.overrides, *first, *drawn, f"budget.max_samples={int(budget)}", f"run={name}"]
    )
    return Member(name, name, {}, tuple(arguments))


def _last_value(config: Mapping[str, Any], name: str) -> float | None:
    """Return the last validation's macro AUROC of a run."""
    run = RunDirectory.of(config["paths"]["runs"], name)
    with open(run.metrics_file, newline="", encoding="utf-8") as handle:
        values = [row["val/macro_auroc"] for row in csv.DictReader(handle)]
    measured = [float(value) for value in values if value]
    return measured[-1] if measured else None


def _summary(study: optuna.Study, folder: Path) -> int:
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    if not done:
        raise UserError("No trial of the search was finished; see the messages of its runs.")
    best = study.best_trial
    shown = " ".join(f"{key}={value}" for key, value in best.params.items())
    print(
        f"{len(done)} trials with a value. Best: trial {best.number}, validation macro AUROC "
        f"{best.value:.4f}, {shown}\nStudy: {folder / 'search.journal'}. The best of many trials "
        "is biased upwards by the selection: train it with other seeds before comparing.",
        flush=True,
    )
    return 0

"""One evaluation, or a comparison of several, from a config to its page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ecgfounder_train.core.checkout import code_version
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.comparison import write_comparison
from ecgfounder_train.evaluation.evaluation import Evaluation, named
from ecgfounder_train.evaluation.outcome import write_outcome
from ecgfounder_train.evaluation.settings import EvaluationSettings


def evaluate(config: Mapping[str, Any]) -> Path:
    """Do what `configs/evaluate.yaml` asks for; return the path of the page that was written.

    Raises:
        UserError: A setting is wrong, or data and model do not belong together.
    """
    names = config["compare"]
    if names:
        return _compare(config, names)
    if not config["run"] and str(config["checkpoint"]) in ("best", "last"):
        raise UserError(
            "Name a run with run=NAME, several with compare=[A,B], or weights of their own "
            "with checkpoint=PATH."
        )
    settings = EvaluationSettings.from_config(config)
    evaluation = Evaluation(settings, str(config["run"]) if config["run"] else None)
    return write_outcome(evaluation, evaluation.evaluate())


def _compare(config: Mapping[str, Any], names: Any) -> Path:
    if not isinstance(names, list) or len({str(name) for name in names}) < 2:
        raise UserError(f"compare={names} must list two or more different runs: compare=[A,B].")
    if config["average"]:
        raise UserError("average= goes with run=NAME, not with compare=.")
    settings = EvaluationSettings.from_config(config)
    evaluations = [Evaluation(settings, str(name)) for name in names]
    results = {item.called: item.evaluate() for item in evaluations}
    first, *others = evaluations
    provenance: dict[str, str] = {}
    for name, result in results.items():
        provenance |= named(name, result.provenance)
    return write_comparison(
        first.folder / f"compare_{'_'.join(item.called for item in others)}.html",
        {name: result.predictions for name, result in results.items()},
        f"{' and '.join(results)}, {first.folder.name}",
        list(dict.fromkeys(remark for result in results.values() for remark in result.remarks)),
        provenance | {"commit of the code": code_version()},
    )

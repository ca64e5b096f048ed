"""Predictions, intervals and report of a trained run on a split or an external set."""

from typing import Any


def main(config: dict[str, Any]) -> None:
    """Evaluate one run, or compare several."""
    from ecgfounder_train.evaluation.run import evaluate

    print(f"Report: {evaluate(config)}")


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("evaluate")

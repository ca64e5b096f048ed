"""Predictions, intervals and report of a trained run on a split or an external set. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("evaluate")

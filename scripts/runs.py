"""Runs with their state, progress, best metric, and how to go on. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> None:
    """Print the runs below paths.runs."""
    from ecgfounder_train.training.runs import list_runs, show

    runs = list_runs(config["paths"]["runs"], float(config["stale_after_s"]))
    if config["state"] is not None:
        runs = [run for run in runs if run.state == config["state"]]
    print(show(runs, str(config["format"])))


if __name__ == "__main__":
    app.run("runs", main)

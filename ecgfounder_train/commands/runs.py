"""List runs with state, progress, best metric, and the command that resumes each."""

from typing import Any


def main(config: dict[str, Any]) -> None:
    """Print the runs below paths.runs."""
    from ecgfounder_train.training.runs import list_runs, show

    runs = list_runs(config["paths"]["runs"], float(config["stale_after_s"]))
    if config["state"] is not None:
        runs = [run for run in runs if run.state == config["state"]]
    print(show(runs, str(config["format"])))


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("runs")

"""Write a synthetic archive in the layout of HEEDB 5.0. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> None:
    """Write the archive and say what is in it."""
    from ecgfounder_train.core.progress import ProgressMeter
    from ecgfounder_train.simulate import write_archive

    with ProgressMeter("simulating", int(config["num_patients"]), "patients") as meter:
        summary = write_archive(config, lambda done, total: meter.update(done))
    print(summary.in_words())


if __name__ == "__main__":
    app.run("simulate", main)

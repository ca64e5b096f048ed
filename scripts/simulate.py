"""Write a synthetic archive in the layout of HEEDB 5.0. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> None:
    """Write the archive and say what is in it."""
    from ecgfounder_train.core.progress import ProgressMeter
    from ecgfounder_train.simulate import write_archive

    with ProgressMeter("simulating", int(config["num_patients"]), "patients") as meter:
        summary = write_archive(config, lambda done, total: meter.update(done))
    print(
        f"{summary.num_records:,} recordings of {summary.num_patients:,} patients in "
        f"{summary.root}, {summary.num_bad:,} of them bad on purpose."
    )
    print(f"Next: python scripts/prepare.py source=heedb source.root={summary.root} shards=DIR")


if __name__ == "__main__":
    app.run("simulate", main)

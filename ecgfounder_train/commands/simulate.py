"""Write a synthetic archive in the layout of HEEDB, or a gallery of its diagnoses."""

from typing import Any


def main(config: dict[str, Any]) -> None:
    """Write the archive and say what is in it."""
    if config["gallery"]:
        write_gallery(config)
        return
    from ecgfounder_train.core.commands import command
    from ecgfounder_train.core.progress import ProgressMeter
    from ecgfounder_train.simulate import write_archive

    with ProgressMeter("simulating", int(config["num_patients"]), "patients") as meter:
        summary = write_archive(config, lambda done, total: meter.update(done))
    print(
        f"{summary.num_records:,} recordings of {summary.num_patients:,} patients in "
        f"{summary.root}, {summary.num_bad:,} of them bad on purpose."
    )
    keys = {"source": "heedb", "source.root": summary.root, "shards": f"{summary.root}_shards"}
    print(f"Next: {command('prepare', keys)}")


def write_gallery(config: dict[str, Any]) -> None:
    """Write the pictures and say where they are."""
    from ecgfounder_train.figures.ecg_strip import strip_figure, strip_png
    from ecgfounder_train.simulate import gallery

    pictures = gallery.write_gallery(
        config["gallery"],
        lambda *strip: strip_png(strip_figure(*strip, mark="Simulated")),  # type: ignore[misc]
        int(config["seed"]),
    )
    total_kb = sum(picture.stat().st_size for picture in pictures) / 1000
    print(f"{len(pictures)} pictures, {total_kb:.0f} kB, in {config['gallery']}.")


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("simulate")

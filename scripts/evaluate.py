"""Predictions, label table and report of a trained run on a split. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> None:
    """Evaluate one checkpoint of a run."""
    from omegaconf import OmegaConf

    from ecgfounder_train.core.run_directory import RunDirectory
    from ecgfounder_train.evaluation import label_notes, write_predictions, write_report
    from ecgfounder_train.evaluation.predict import predict_split
    from ecgfounder_train.evaluation.trained import TrainedModel, choose_device
    from ecgfounder_train.labels import Vocabulary, vocabulary_names
    from ecgfounder_train.models.checkpoint import find_checkpoint
    from ecgfounder_train.shards import ShardSet

    run = RunDirectory.existing(config["paths"]["runs"], str(config["run"]))
    path = find_checkpoint(run, str(config["checkpoint"]))
    device = choose_device(config["device"])
    trained = TrainedModel.load(path, device)
    shards = ShardSet.open(config["shards"] or OmegaConf.load(run.config_file)["shards"])
    split = config["split"] or ("test" if len(shards.rows("test")) else "val")
    predictions = predict_split(trained, shards, split, device, config["batch_size"], run.name)
    folder = run.evaluation(split)
    name = str(shards.manifest.vocabulary["name"])
    write_predictions(folder / "predictions.parquet", predictions)
    report = write_report(
        folder / "report.html",
        predictions,
        run.metrics_file if run.metrics_file.is_file() else None,
        title=f"Run {run.name}, {split} split",
        provenance={
            "checkpoint": f"{config['checkpoint']} ({trained.samples_seen:,} samples seen)",
            "model": trained.model_name,
            "signal profile": f"{trained.profile.name}, {trained.profile.fs:g} Hz",
            **{f"version of {name}": value for name, value in trained.versions.items()},
        },
        notes=label_notes(Vocabulary.load(name)) if name in vocabulary_names() else None,
        groups=dict(zip(trained.labels, shards.manifest.vocabulary["groups"], strict=True)),
    )
    print(f"Report: {report}")


if __name__ == "__main__":
    app.run("evaluate", main)

"""Probabilities of a trained model for anyone's WFDB records. See --help."""

from pathlib import Path
from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> None:
    """Predict every record that `input` finds and write one table."""
    from ecgfounder_train.core.errors import UserError
    from ecgfounder_train.core.files import atomic_file
    from ecgfounder_train.evaluation.predict import find_records, predict_records
    from ecgfounder_train.evaluation.trained import TrainedModel, choose_device
    from ecgfounder_train.models.checkpoint import resolve_checkpoint

    output = Path(config["output"])
    if output.suffix not in (".csv", ".parquet"):
        raise UserError(f"output={output} must end in .csv or .parquet.")
    records = find_records(str(config["input"]))
    device = choose_device(config["device"])
    path = resolve_checkpoint(str(config["checkpoint"]), config["paths"]["runs"], config["run"])
    trained = TrainedModel.load(path, device)
    predicted = predict_records(trained, records, device, config["batch_size"], config["pool"])
    frame = predicted.to_frame()
    with atomic_file(output) as handle:
        if output.suffix == ".csv":
            frame.write_csv(handle)
        else:
            frame.write_parquet(handle)
    print(predicted.in_words())
    print(f"Predictions: {output}")


if __name__ == "__main__":
    app.run("predict", main)

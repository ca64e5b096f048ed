"""Probabilities (or logits, embeddings) of a trained model for files of ECGs."""

from typing import Any


def main(config: dict[str, Any]) -> None:
    """Predict every recording that `input` means and write one table."""
    from ecgfounder_train.inference.command import predict_files
    from ecgfounder_train.weights.checkpoint import resolve_checkpoint

    runs, run, which = config.pop("paths")["runs"], config.pop("run"), config.pop("checkpoint")
    path = resolve_checkpoint(str(which), runs, run)
    for line in predict_files(config, path, config.pop("device")):
        print(line)


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("predict")

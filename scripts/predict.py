"""Probabilities (or logits, embeddings) of a trained model for files of ECGs. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("predict")

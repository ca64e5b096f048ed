"""Train a network on a folder of shards, or go on where a run stopped. See --help."""

from ecgfounder_train import app
from ecgfounder_train.training.pretrain import train

if __name__ == "__main__":
    app.run("pretrain", train)

"""Pretrain a network on a folder of shards, or resume a run. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("pretrain")

"""Pretrain a network on a folder of shards, or resume a run."""

from typing import Any


def main(config: dict[str, Any]) -> int:
    """Train; the import takes seconds, in which Ctrl-C must end as cleanly as later."""
    from ecgfounder_train.training.pretrain import train

    return train(config)


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("pretrain")

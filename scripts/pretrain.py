"""Train a network on a folder of shards, or go on where a run stopped. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> int:
    """Train; the import takes seconds, in which Ctrl-C must end as cleanly as later."""
    from ecgfounder_train.training.pretrain import train

    return train(config)


if __name__ == "__main__":
    app.run("pretrain", main)

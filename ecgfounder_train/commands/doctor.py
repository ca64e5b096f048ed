"""Check a run's machines, data and speed before GPU hours are spent on it."""

from typing import Any


def main(config: dict[str, Any]) -> int:
    """Examine; exit status 1 if a check fails."""
    from ecgfounder_train.training.doctor import examine

    return examine(config)


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("doctor")

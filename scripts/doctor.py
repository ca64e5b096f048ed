"""What can be found out about a run before GPU hours are spent on it. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> int:
    """Examine; exit status 1 if a check fails."""
    from ecgfounder_train.training.doctor import examine

    return examine(config)


if __name__ == "__main__":
    app.run("doctor", main)

"""Check a folder of shards, byte by byte or a sample of it. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> int:
    """Verify shards, print the findings, return 1 if there are any."""
    from ecgfounder_train.shards import verify

    report = verify(config["shards"], config["sample"], config["seed"], config["private"])
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    app.run("verify", main)

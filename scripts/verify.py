"""Check a folder of shards, byte by byte or a sample of it, or for leakage. See --help."""

from typing import Any

from ecgfounder_train import app


def main(config: dict[str, Any]) -> int:
    """Verify or audit shards, print the findings, return 1 if there are any."""
    from ecgfounder_train.shards import verify
    from ecgfounder_train.shards.audit import audit

    if config["audit"]:
        leaks = audit(config["shards"], config["against"], float(config["min_correlation"]))
        if config["pairs"] is not None:
            leaks.write(config["pairs"])
        print(leaks)
        return 0 if leaks.ok else 1
    report = verify(config["shards"], config["sample"], config["seed"], config["private"])
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    app.run("verify", main)

"""Verify a folder of shards, byte by byte or a sample of it, or audit it for leakage."""

from typing import Any


def main(config: dict[str, Any]) -> int:
    """Verify, rebuild or audit shards, print the findings, return 1 if there are any."""
    from ecgfounder_train.shards import rebuild, verify
    from ecgfounder_train.shards.audit import audit

    if config["audit"]:
        leaks = audit(config["shards"], config["against"], config["min_correlation"])
        if config["pairs"] is not None:
            leaks.write(config["pairs"])
        print(leaks)
        return 0 if leaks.ok else 1
    if config["rebuild"] is not None:
        where = {key: config[key] for key in ("private", "root", "storage_options")}
        names = rebuild(config["shards"], config["rebuild"], **where)
        print(f"Rebuilt, as the manifest states: {', '.join(names) or 'none needed it'}.")
    report = verify(config["shards"], config["sample"], config["seed"], config["private"])
    print(report)
    return 0 if report.ok else 1


if __name__ == "__main__":
    from ecgfounder_train.app import run

    run("verify")

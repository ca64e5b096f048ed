"""Verify a folder of shards, or audit it for leakage. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("verify")

"""Train a grid of runs that differ in one setting, and report the differences. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("ablate")

"""Run a benchmark of the reference against this package. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("bench")

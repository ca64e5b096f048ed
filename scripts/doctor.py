"""Check a run's machines, data and speed before GPU hours are spent on it. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("doctor")

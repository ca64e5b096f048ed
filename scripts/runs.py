"""List runs with state, progress, best metric, and the command that resumes each. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("runs")

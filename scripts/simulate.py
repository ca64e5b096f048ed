"""Write a synthetic archive in the layout of HEEDB, or a gallery of its diagnoses. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("simulate")

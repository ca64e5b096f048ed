"""Turn an archive of WFDB records into shards to train on. See --help."""

from ecgfounder_train.app import run

if __name__ == "__main__":
    run("prepare")

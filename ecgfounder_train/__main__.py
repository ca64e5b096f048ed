"""`python -m ecgfounder_train VERB ...`, the same as `ecgfounder VERB ...`."""

from ecgfounder_train.app import main

if __name__ == "__main__":
    main()

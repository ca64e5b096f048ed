"""Every key of every command, stated once; see `core.config` for what is derived from it.

Nothing in here imports torch or reads a file, so that a wrong value is reported at once.
"""

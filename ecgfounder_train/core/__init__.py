"""What every stage needs and nothing that knows about ECGs: errors, files, hashes, progress.

No module in here imports torch, so that the table stages start in a fraction of a second.
"""

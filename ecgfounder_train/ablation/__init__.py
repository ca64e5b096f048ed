"""Ablations: a grid of ordinary runs, and what may be said of their difference.

`plan` turns axes into members, `running` trains them here or on SLURM, `results` reads them back,
`statistics` and `scaling` compare, `wording` says it in words, `report` makes the page. `sizes`
measures networks, `search` is the Optuna sweep.
"""

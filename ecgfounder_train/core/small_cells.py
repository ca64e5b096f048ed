"""Small counts of people or recordings, which nothing that is made to be shared shows."""

MIN_CELL = 10
"""Counts of 1 to this less 1 are withheld in reports, CSV files and model cards."""


def is_small(count: int, min_cell: int = MIN_CELL) -> bool:
    """Return whether a count must be withheld."""
    return 0 < count < min_cell

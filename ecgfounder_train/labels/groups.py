"""Groups of a vocabulary's labels, by which metrics are reported."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError

NOT = "not:"
"""Prefix of a group: all labels that are not in it."""


def in_group(
    groups: Sequence[str | None], group: str | None, key: str = "group"
) -> NDArray[np.bool_]:
    """Return which labels belong to a group of the vocabulary.

    Args:
        groups: Of each label; several are separated by `|`.
        group: Name, or `not:NAME` for the labels outside it; None: every label.
        key: Config key that an error names.

    Raises:
        UserError: No label does.
    """
    if group is None:
        return np.ones(len(groups), np.bool_)
    name = group.removeprefix(NOT)
    own = [(names or "").split("|") for names in groups]
    chosen = np.array([(name in names) == (name == group) for names in own], np.bool_)
    if not any(name in names for names in own) or not chosen.any():
        known = sorted({each for names in own for each in names if each})
        raise UserError(
            f"{key}={group!r}: the vocabulary has no such group of labels. Valid, also after "
            f"{NOT} {', '.join(known) or 'none'}."
        )
    return chosen

"""Ages as they may be shared: whole years, capped at 90.

Decimals beside a patient key give away the intervals between a patient's recordings, and few
people are over 89: both are kept in the private folder only.

Source: 45 CFR 164.514(b)(2)(i)(C), HIPAA Safe Harbor: ages over 89 are one category.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

OLDEST_YEARS = 89.0
"""Ages above are shown as `CAPPED_YEARS`."""
CAPPED_YEARS = 90.0


def whole_years(age_years: float | None) -> float | None:
    """Return completed years, at most 90; None where unknown."""
    return None if age_years is None else float(whole_years_array(age_years))


def whole_years_array(age_years: ArrayLike) -> NDArray[Any]:
    """Return completed years, at most 90; NaN stays."""
    ages = np.asarray(age_years, np.float32)
    return np.where(ages > OLDEST_YEARS, np.float32(CAPPED_YEARS), np.floor(ages))

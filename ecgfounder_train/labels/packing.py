"""Eight labels to a byte, as catalogs, indexes and prediction files hold them."""

import numpy as np
import numpy.typing as npt


def pack(flags: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the flags as bits, label 0 in the highest bit of byte 0.

    Shape: (..., num_labels) of 0 and 1 -> (..., ceil(num_labels / 8)).
    """
    return np.packbits(flags, axis=-1, bitorder="big")


def unpack(packed: npt.NDArray[np.uint8], num_labels: int) -> npt.NDArray[np.uint8]:
    """Return the flags of `pack` again.

    Shape: (..., ceil(num_labels / 8)) -> (..., num_labels).
    """
    return np.unpackbits(packed, axis=-1, count=num_labels, bitorder="big")

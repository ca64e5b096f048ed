import os
from typing import NamedTuple

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def thorough() -> int:
    """How many times more simulations the full tier makes."""
    return 4 if os.environ.get("ECG_TEST_TIER") == "all" else 1


class Scored(NamedTuple):
    """Made-up predictions whose records of one patient resemble each other."""

    logits: np.ndarray
    targets: np.ndarray
    observed: np.ndarray
    patients: np.ndarray


@pytest.fixture
def clustered():
    """Make predictions of `num_patients` patients with 1 to 8 records each."""

    def make(rng, num_patients=200, num_labels=3, prevalence=0.2, separation=1.0, observed=1.0):
        sizes = 1 + rng.binomial(7, 0.25, num_patients)
        patients = np.repeat(np.arange(num_patients), sizes)
        shape = (len(patients), num_labels)
        prone = rng.beta(prevalence, 1 - prevalence, (num_patients, num_labels))[patients]
        targets = rng.random(shape) < prone
        shared = rng.normal(size=(num_patients, num_labels))[patients]
        logits = 0.8 * shared + 0.6 * rng.normal(size=shape) + separation * targets
        seen = rng.random(shape) < observed
        return Scored(logits.astype(np.float32), targets.astype(np.uint8), seen, patients)

    return make

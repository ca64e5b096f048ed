"""Every file of configs/labels opens a vocabulary of its own name."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ecgfounder_train.labels import Vocabulary, vocabulary_names

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "labels"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_label_config_opens_the_vocabulary_it_names_with_the_defaults(path: Path) -> None:
    vocabulary = Vocabulary.from_config(OmegaConf.load(path))
    assert vocabulary.name == path.stem
    assert vocabulary.fingerprint == Vocabulary.load(path.stem).fingerprint


def test_every_vocabulary_has_a_config() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(vocabulary_names())

"""Every file of configs/labels opens the vocabulary it names."""

from pathlib import Path

import pytest

from ecgfounder_train.app import compose_config
from ecgfounder_train.labels import Vocabulary, vocabulary_names

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "labels"


PUBLISHED = "ecgfounder150_published"


def vocabulary_of(name: str) -> Vocabulary:
    config = compose_config("prepare", ["shards=x", "source.root=x", f"labels={name}"])
    return Vocabulary.from_config(config["labels"])


@pytest.mark.parametrize("name", vocabulary_names())
def test_label_config_opens_the_vocabulary_it_names_with_the_defaults(name: str) -> None:
    vocabulary = vocabulary_of(name)
    assert vocabulary.name == name
    assert vocabulary.options["closure"] == "parents"
    assert vocabulary.fingerprint == Vocabulary.load(name).fingerprint


def test_the_published_variant_of_the_150_labels_is_the_authors_substring_rule() -> None:
    vocabulary = vocabulary_of(PUBLISHED)
    assert vocabulary.labels == Vocabulary.load("ecgfounder150").labels
    assert (vocabulary.match, vocabulary.closure) == ("substring", "none")


def test_every_vocabulary_has_a_config() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*vocabulary_names(), PUBLISHED}

"""Training refuses shards whose split is not the one it is told."""

import pytest
from tiny_set import tiny_config

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.training.pretrain import require_split, train


def test_shards_of_another_split_are_refused_before_anything_is_written(tiny_shards, tmp_path):
    config = tiny_config(tiny_shards, tmp_path, "wrong", "expect_split=official")
    found = tiny_shards.manifest.fingerprints["split"]
    with pytest.raises(UserError, match=rf"expect_split=official.*'patient_hash'.*{found}"):
        train(config)
    assert not RunDirectory.of(tmp_path, "wrong").path.exists()


def test_name_fingerprint_or_nothing_is_accepted(tiny_shards):
    manifest = tiny_shards.manifest
    for expected in (None, manifest.split["name"], manifest.fingerprints["split"]):
        require_split(tiny_shards, expected)
    with pytest.raises(UserError, match="expect_split=fe6b"):
        require_split(tiny_shards, "fe6b2167363cb876")

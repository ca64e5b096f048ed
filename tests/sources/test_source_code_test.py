"""CODE-test: numbers, units and the zeros around a recording."""

import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.records.sources import open_source

h5py = pytest.importorskip("h5py")


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    tracings = np.zeros((3, 4096, 12), np.float32)
    tracings[0, 48:4048] = rng.normal(0, 5, (4000, 12))
    tracings[1, 648:3448] = rng.normal(0, 5, (2800, 12))
    with h5py.File(tmp_path / "ecg_tracings.hdf5", "w") as file:
        file["tracings"] = tracings
    (tmp_path / "annotations").mkdir()
    gold = "1dAVb,RBBB,LBBB,SB,AF,ST\n0,0,0,0,0,0\n1,0,0,1,0,0\n0,0,0,0,1,0\n"
    (tmp_path / "annotations" / "gold_standard.csv").write_text(gold)
    (tmp_path / "attributes.csv").write_text("age,sex\n40,F\n95,M\n,M\n")
    return tmp_path, tracings


def test_statements_and_people_follow_the_order_of_the_tracings(folder):
    table = open_source({"name": "code_test", "root": folder[0]}).read().records.collect()
    assert table["statements"].to_list() == [[], ["1dAVb", "SB"], ["AF"]]
    assert table["age_years"].to_list() == [40, 95, None]
    assert table["sex"].to_list() == ["F", "M", "M"]
    assert table["patient_id"].n_unique() == 3


def test_padding_is_cut_off_and_units_become_millivolts(folder):
    source = open_source({"name": "code_test", "root": folder[0]})
    seven = source.read_ecg("1")
    assert seven.signal.shape == (12, 2800)
    np.testing.assert_allclose(seven.signal, folder[1][1, 648:3448].T * 0.1, rtol=1e-6)
    with pytest.raises(RejectedRecordError, match="nothing but zeros"):
        source.read_ecg("2")


def test_files_that_do_not_belong_together_are_refused(folder):
    (folder[0] / "attributes.csv").write_text("age,sex\n40,F\n")
    with pytest.raises(UserError, match="3 tracings, 3 annotations and 1 attributes"):
        open_source({"name": "code_test", "root": folder[0]}).read()
    (folder[0] / "attributes.csv").unlink()
    with pytest.raises(UserError, match="does not exist"):
        open_source({"name": "code_test", "root": folder[0]}).read()

"""CODE-test: numbers, units and the zeros around a recording."""

import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, UserError
from ecgfounder_train.records.sources import open_source

h5py = pytest.importorskip("h5py")


def twelve_leads(rng, num_samples, order=("aVR", "aVL", "aVF")):
    """Return noise whose limb leads fit together, (num_samples, 12)."""
    one, two, *chest = rng.normal(0, 5, (8, num_samples))
    augmented = {"aVR": -(one + two) / 2, "aVL": one - two / 2, "aVF": two - one / 2}
    return np.stack([one, two, two - one, *(augmented[n] for n in order), *chest], axis=1)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    tracings = np.zeros((3, 4096, 12), np.float32)
    tracings[0, 48:4048] = twelve_leads(rng, 4000)
    tracings[1, 648:3448] = twelve_leads(rng, 2800)
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


def test_a_blank_answer_is_unobserved_and_not_negative(folder):
    path = folder[0] / "annotations" / "gold_standard.csv"
    path.write_text(path.read_text().replace("0,0,0,0,1,0", "0,,0,0,1,0"))
    table = open_source({"name": "code_test", "root": folder[0]}).read().records.collect()
    assert table["statements"].to_list() == [[], ["1dAVb", "SB"], None]


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


@pytest.mark.parametrize("order", [("aVR", "aVL", "aVF"), ("aVL", "aVF", "aVR")])
def test_order_of_the_augmented_leads_is_read_off_the_recordings(folder, order):
    rng = np.random.default_rng(1)
    with h5py.File(folder[0] / "ecg_tracings.hdf5", "w") as file:
        file["tracings"] = np.stack([twelve_leads(rng, 4096, order) for _ in range(3)])
    record = open_source({"name": "code_test", "root": folder[0]}).read_ecg("0")
    assert record.lead_names[3:6] == order
    one, two, avr = (record.signal[record.lead_names.index(n)] for n in ("I", "II", "aVR"))
    np.testing.assert_allclose(avr, -(one + two) / 2, atol=1e-5)


def test_leads_that_the_recordings_do_not_tell_must_be_named(folder):
    with h5py.File(folder[0] / "ecg_tracings.hdf5", "w") as file:
        file["tracings"] = np.random.default_rng(2).normal(0, 5, (3, 4096, 12))
    with pytest.raises(UserError, match=r"do not determine the order.*source\.leads="):
        open_source({"name": "code_test", "root": folder[0]}).read()
    names = ["I", "II", "III", "aVL", "aVF", "aVR", "V1", "V2", "V3", "V4", "V5", "V6"]
    source = open_source({"name": "code_test", "root": folder[0], "leads": names})
    assert source.read_ecg("0").lead_names == tuple(names)
    with pytest.raises(UserError, match="must name the 12 standard leads"):
        open_source({"name": "code_test", "root": folder[0], "leads": names[:11]}).read()


@pytest.mark.parametrize(("stored_per_mv", "expected"), [(1, 1.0), (10, 0.1)])
def test_unit_is_read_off_the_recordings(folder, stored_per_mv, expected):
    rng = np.random.default_rng(4)
    tracings = np.stack([twelve_leads(rng, 4096) for _ in range(3)]) / 30 * stored_per_mv
    tracings[1, :3000] = 0
    tracings += np.linspace(0, 5 * stored_per_mv, 4096)[:, None] * (tracings != 0)  # it wanders
    with h5py.File(folder[0] / "ecg_tracings.hdf5", "w") as file:
        file["tracings"] = tracings.astype(np.float32)
    names = ["I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6"]
    source = open_source({"name": "code_test", "root": folder[0], "leads": names})
    np.testing.assert_allclose(source.read_ecg("0").signal, tracings[0].T * expected, rtol=1e-5)
    told = {"name": "code_test", "root": folder[0], "leads": names, "unit_mv": 0.39}
    np.testing.assert_allclose(
        open_source(told).read_ecg("0").signal, tracings[0].T * 0.39, rtol=1e-5
    )
    with pytest.raises(UserError, match="unit_mv=0 must be above 0"):
        open_source({**told, "unit_mv": 0}).read()

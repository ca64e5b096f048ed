"""Every open recording at hand: equal to wfdb, and through every profile or out with a reason."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import wfdb

from ecgfounder_train.core.errors import RejectedRecordError
from ecgfounder_train.records import SignalProfile, normalise, read_record

pytestmark = pytest.mark.real_data


def headers(folder: Path, every: int = 1) -> list[Path]:
    paths = sorted(folder.rglob("*.hea"))[::every]
    assert paths
    return paths


@pytest.mark.parametrize(
    ("folder", "every"), [("ptbxl500", 3), ("cinc2017", 15), ("cinc2021", 3), ("ludb", 2)]
)
def test_real_records_equal_wfdb(real_data, folder, every):
    for path in headers(real_data / folder, every):
        reference = wfdb.rdrecord(str(path.with_suffix("")), physical=True)
        record = read_record(path)
        np.testing.assert_array_equal(record.signal, reference.p_signal.T.astype(np.float32))
        assert record.lead_names == tuple(reference.sig_name)


def test_odd_records_are_read_or_rejected_as_expected(real_data):
    rejected = Counter()
    for path in headers(real_data / "odd"):
        try:
            record = read_record(path)
        except RejectedRecordError as error:
            rejected[path.stem, error.reason.value] += 1
            continue
        if path.parent.parent.name == "bad_headers":
            assert record.start_time is not None
            with pytest.raises(Exception):  # noqa: B017 - the reason to read it ourselves
                wfdb.rdrecord(str(path.with_suffix("")))
        else:
            reference = wfdb.rdrecord(str(path.with_suffix("")), physical=True)
            unused = [signal.name for signal in record.unused_signals]
            # A pulse wave in NU stands beside two leads.
            assert unused == (["PLETH"] if path.stem == "a103l" else [])
            leads = [name not in unused for name in reference.sig_name]
            expected = reference.p_signal.T[leads].astype(np.float32)
            np.testing.assert_array_equal(record.signal, expected)
    # Its .xyz file is not there.
    assert rejected == {("s0010_re", "missing_signal_file"): 1}


@pytest.mark.parametrize("name", ["paper", "author", "official", "zscore"])
@pytest.mark.parametrize(
    ("folder", "every", "leads"),
    [("ptbxl500", 9, None), ("cinc2017", 40, ["I"]), ("cinc2021", 6, None), ("ludb", 8, None)],
)
def test_real_records_pass_every_profile_or_are_rejected_with_a_reason(
    real_data, profile_config, name, folder, every, leads
):
    config = profile_config(name) if leads is None else profile_config(name, leads=leads)
    profile = SignalProfile.from_config(config)
    written = 0
    for path in headers(real_data / folder, every):
        try:
            result = profile.apply(read_record(path))
        except RejectedRecordError as error:
            assert error.reason.value == "constant_lead"
            continue
        written += 1
        for window in result.windows:
            out = normalise(
                window.ecg, window.stats, window.valid_start, window.valid_num_samples,
                profile.load_normalisation,
            )  # fmt: skip
            assert out.shape == profile.shape
            assert np.isfinite(out).all()
            assert out.std() > 0.05
    assert written > 0

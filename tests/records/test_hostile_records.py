"""Whatever an archive holds: a window or a named reason, in bounded time and memory.

With ECG_TEST_TIER=all 5,600 damaged records instead of 420.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason
from ecgfounder_train.records import SignalProfile, read_record

WORKER = Path(__file__).with_name("hostile_records.py")
NUM_CASES = 5600 if os.environ.get("ECG_TEST_TIER") == "all" else 420


def test_damaged_records_of_every_format_are_written_or_rejected_by_name(tmp_path):
    command = [sys.executable, str(WORKER), str(tmp_path), "0", str(NUM_CASES)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, f"{result.returncode}: {result.stderr[-3000:]}"
    outcomes = Counter(json.loads(result.stdout))
    assert outcomes.total() == NUM_CASES
    assert set(outcomes) - {"written"} <= {reason.value for reason in RejectReason}
    assert outcomes["written"] > NUM_CASES / 20, "the damage must leave some records whole"
    assert len(outcomes) >= 10, "and reach most reasons"


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["official", "paper", "author", "zscore"])
def test_odd_real_records_pass_every_profile_or_are_rejected_by_name(
    real_data, profile_config, name
):
    profile = SignalProfile.from_config(profile_config(name, derive_leads=True))
    outcomes = Counter()
    for path in sorted((real_data / "odd").rglob("*.hea")):
        try:
            windows = profile.apply(read_record(path)).windows
        except RejectedRecordError as error:
            assert error.detail
            outcomes[error.reason.value] += 1
        else:
            assert all(window.ecg.shape == (12, 5000) for window in windows)
            outcomes["written"] += 1
    assert outcomes["written"] > 0
    assert set(outcomes) <= {
        "written", "missing_leads", "unknown_units", "missing_signal_file", "missing_header",
        "duplicate_leads", "constant_lead",
    }  # fmt: skip

"""Content of strangers' files is refused by its stated sizes, and whatever it raises is counted."""

import struct
import tokenize
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.untrusted import (
    MAX_RECORDS_PER_FILE,
    check_hdf5_dataset,
    check_num_records,
    check_stated_bytes,
    hdf5_datasets,
    reject_unexpected,
)


def _recursion() -> None:
    _recursion()


def _overflow() -> None:
    np.empty(10**15, np.uint8)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (zlib.error("4711000001_20190317"), "zlib.error"),
        (struct.error("4711000001"), "struct.error"),
        (tokenize.TokenError("4711000001"), "tokenize.TokenError"),
        (RuntimeError("4711000001"), "RuntimeError"),
        (KeyError("4711000001"), "KeyError"),
        (AssertionError("4711000001"), "AssertionError"),
    ],
)
def test_whatever_is_raised_is_a_rejection_with_its_kind_and_no_content(
    error: Exception, kind: str
) -> None:
    with pytest.raises(RejectedRecordError) as caught, reject_unexpected():
        raise error
    assert caught.value.reason is RejectReason.UNEXPECTED_ERROR
    assert caught.value.detail == f"unexpected {kind}"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("fail", "kind"), [(_recursion, "RecursionError"), (_overflow, "MemoryError")]
)
def test_exhausted_stack_or_memory_is_a_rejection(fail: Callable[[], None], kind: str) -> None:
    with pytest.raises(RejectedRecordError, match=kind), reject_unexpected():
        fail()


@pytest.mark.parametrize("error", [UserError("a setting"), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_not_about_the_record_passes(error: BaseException) -> None:
    with pytest.raises(type(error)), reject_unexpected():
        raise error


def test_rejection_passes_as_it_is() -> None:
    with pytest.raises(RejectedRecordError, match="too_short: 1 s"), reject_unexpected():
        raise RejectedRecordError(RejectReason.TOO_SHORT, "1 s")


@pytest.mark.parametrize(
    ("stated", "stored", "compressed"),
    [(101, 100, False), (110_001, 100, True), (1 << 33, 1 << 33, False), (-1, 100, False)],
)
def test_stated_size_beyond_the_stored_one_is_rejected(
    stated: int, stored: int, compressed: bool
) -> None:
    with pytest.raises(RejectedRecordError, match="the file states"):
        check_stated_bytes(stated, stored, compressed=compressed)
    check_stated_bytes(min(abs(stated), 100), 100, compressed=compressed)


def test_number_of_recordings_is_bounded() -> None:
    check_num_records(MAX_RECORDS_PER_FILE)
    for count in (MAX_RECORDS_PER_FILE + 1, -1, 10**30):
        with pytest.raises(RejectedRecordError, match="recordings"):
            check_num_records(count)


def test_hdf5_never_reads_another_file(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"secret" * 1000)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["ecg"] = np.ones((2, 100), np.float32)
    layout = h5py.VirtualLayout((2, 100), "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "ecg", (2, 100))
    path = tmp_path / "hostile.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("external", (12, 100), "i1", external=[(str(victim), 0, 1200)])
        file.create_virtual_dataset("virtual", layout)
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "ecg")
        file["dangling"] = h5py.SoftLink("/nowhere")
        file["loop/again"] = h5py.SoftLink("/loop")
        file["loop/ecg"] = np.ones((2, 100), np.float32)
        file.create_dataset("never_written", (12, 10**10), "f4", chunks=(12, 1000))
    with h5py.File(path) as file:
        found = dict(hdf5_datasets(file))
        assert list(found) == ["external", "loop/ecg", "never_written", "virtual"]
        check_hdf5_dataset(found["loop/ecg"])
        for name in ("external", "virtual"):
            with pytest.raises(RejectedRecordError, match="refers to another file"):
                check_hdf5_dataset(found[name])
        with pytest.raises(RejectedRecordError, match="the file states"):
            check_hdf5_dataset(found["never_written"])


def test_compressed_hdf5_is_read_and_a_bomb_is_not(tmp_path: Path) -> None:
    path = tmp_path / "compressed.h5"
    with h5py.File(path, "w") as file:
        good = np.random.default_rng(0).normal(size=(12, 5000)).astype(np.float32)
        file.create_dataset("good", data=good, compression="gzip")
        bomb = file.create_dataset("bomb", (12, 10**8), "f4", chunks=(12, 10**5), compression=9)
        bomb[:, :10] = 1
    with h5py.File(path) as file:
        check_hdf5_dataset(file["good"])
        with pytest.raises(RejectedRecordError, match="the file states"):
            check_hdf5_dataset(file["bomb"])

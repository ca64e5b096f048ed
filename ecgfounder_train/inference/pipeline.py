"""Recordings through profile and network: read ahead in threads while the network computes.

Reading, lead resolution, checks and the profile's first half run in worker threads (numpy, scipy
and file reads release the interpreter lock), so that a batch is ready when the network needs it.
Results come in the order of the references. Memory holds a few batches, however many recordings
there are and however long one is: windows of a long one are made while the network computes.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.untrusted import reject_unexpected
from ecgfounder_train.evaluation.predict import collate_windows, window_array
from ecgfounder_train.inference.checks import (
    check_signal,
    check_windows,
    cropped_remark,
    typical_swing,
    unit_hint,
)
from ecgfounder_train.inference.find import RecordReference
from ecgfounder_train.inference.inputs import SourceRecord
from ecgfounder_train.inference.long_recordings import (
    LongRecording,
    in_pieces,
    is_long,
    left_out_remark,
    window_start_s,
)
from ecgfounder_train.inference.remarks import Remark
from ecgfounder_train.records import EcgRecord, ProfiledRecord, SignalProfile
from ecgfounder_train.records.streaming import WindowStream, stream_windows
from ecgfounder_train.weights.trained_model import TrainedModel

POOLS = ("mean", "max")
PRECISIONS = ("32", "bf16")
OK = "ok"
_MAX_HELD_BYTES = 1 << 23
"""Windows of one recording that wait for the network; more are made when their turn comes."""
_STRIP_S = 60.0

OnShare = Callable[[float], None]
Opener = Callable[[OnShare], ProfiledRecord | WindowStream]


@dataclass(frozen=True)
class PipelineSettings:
    """How recordings are read and pass the network.

    Attributes:
        batch_size: Windows per forward pass.
        pool: How the outputs of several windows become one: `mean` or `max` (of logits).
        derive_leads: Compute absent limb leads from two others.
        num_workers: Threads that read ahead.
        precision: `32`, or `bf16`: faster where the processor has it, other in the second decimal.
        with_features: Keep the features before the last layer too.
    """

    batch_size: int = 32
    pool: str = "mean"
    derive_leads: bool = True
    num_workers: int = 2
    precision: str = "32"
    with_features: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_workers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name}={value!r} is not a whole number above 0.")
        if self.pool not in POOLS:
            raise UserError(f"pool={self.pool!r} is unknown. Valid: {', '.join(POOLS)}.")
        if self.precision not in PRECISIONS:
            raise UserError(
                f"precision={self.precision!r} is unknown. Valid: {', '.join(PRECISIONS)}."
            )


@dataclass(frozen=True)
class PreparedRecord:
    """A recording ready for the network, or why it is not.

    Attributes:
        reference: Where it came from.
        profiled: Its windows; None where it was rejected or has many.
        open_windows: Makes the windows of a recording that has many, when the network needs them.
        status: `ok`, or the reject reason.
        detail: Of the rejection.
        remarks: Warnings.
        fs: Native rate in Hz, NaN where it could not be read.
        duration_s: Native length.
    """

    reference: RecordReference
    profiled: ProfiledRecord | None = None
    open_windows: Opener | None = None
    status: str = OK
    detail: str = ""
    remarks: tuple[Remark, ...] = ()
    fs: float = float("nan")
    duration_s: float = float("nan")


@dataclass(frozen=True)
class WindowResults:
    """The results of a recording's windows.

    Shape:
        starts_s: (num_windows,) from the recording's start.
        logits: (num_windows, num_outputs).
        features: (num_windows, num_features) or None.
    """

    starts_s: NDArray[np.float64]
    logits: NDArray[np.float32]
    features: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class RecordResult:
    """The result of one recording.

    Attributes:
        windows: Of each window, where there are several.

    Shape:
        logits: (num_outputs,) pooled over the windows, None where rejected.
        features: (num_features,) or None.
    """

    prepared: PreparedRecord
    logits: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None
    num_windows: int = 0
    windows: WindowResults | None = None

    @property
    def name(self) -> str:
        """What the table calls the recording."""
        return self.prepared.reference.name


def resolved_record(
    reference: RecordReference, profile: SignalProfile, derive_leads: bool = True
) -> tuple[EcgRecord, tuple[Remark, ...]]:
    """Return a recording with the profile's leads, as recorded otherwise, and what was assumed.

    Of a long one the first minute.

    Raises:
        RejectedRecordError: It cannot be read, or leads are missing.
    """
    source = reference.read()
    long = LongRecording(in_pieces(source), profile, derive_leads)
    record, remarks = (long.head(_STRIP_S) if is_long(source) else long).resolve()
    return record, (*source.remarks, *remarks)


def prepare(
    reference: RecordReference, profile: SignalProfile, derive_leads: bool = True
) -> PreparedRecord:
    """Return a recording's windows with all warnings, or its rejection; never raises for a file."""
    prepared = PreparedRecord(reference)
    record: EcgRecord | None = None
    try:
        with reject_unexpected():
            source = reference.read()
            long = LongRecording(in_pieces(source), profile, derive_leads)
            prepared = replace(
                prepared, fs=long.fs, duration_s=long.num_samples / long.fs, remarks=source.remarks
            )
            if is_long(source):
                return _prepared_long(prepared, source, long)
            record, remarks = long.resolve()
            prepared = replace(
                prepared, remarks=(*source.remarks, *remarks, *check_signal(record, profile))
            )
            profiled = profile.apply(record)
            windows = check_windows(record, profiled, profile)
    except UserError as error:
        return replace(prepared, status=RejectReason.UNEXPECTED_ERROR.value, detail=str(error))
    except RejectedRecordError as error:
        detail = error.detail
        if error.reason in (RejectReason.AMPLITUDE, RejectReason.SATURATED) and record is not None:
            swing = typical_swing(np.nan_to_num(record.signal), record.fs)
            detail += f"; typical swing {swing:.3g} mV, {unit_hint(swing)}"
        return replace(prepared, status=error.reason.value, detail=detail)
    prepared = replace(prepared, remarks=(*prepared.remarks, *windows))
    if sum(window.ecg.nbytes for window in profiled.windows) > _MAX_HELD_BYTES:
        return replace(prepared, open_windows=_again(reference, profile, derive_leads))
    return replace(prepared, profiled=profiled)


def _again(reference: RecordReference, profile: SignalProfile, derive_leads: bool) -> Opener:
    """Return what reads a recording once more and makes its windows."""

    def opened(on_share: OnShare) -> ProfiledRecord | WindowStream:
        source = reference.read()
        long = LongRecording(in_pieces(source), profile, derive_leads)
        if is_long(source):
            return stream_windows(profile, long, None, on_share)
        return profile.apply(long.read())

    return opened


def _prepared_long(
    prepared: PreparedRecord, source: SourceRecord, long: LongRecording
) -> PreparedRecord:
    """Return a long recording whose windows are made while the network computes.

    Raises:
        RejectedRecordError: Its leads, rate or length are not what the profile takes.
    """
    planned = stream_windows(long.profile, long)  # raises before the network's turn
    used_s = planned.num_planned * long.profile.duration_s
    cropped = cropped_remark(used_s, prepared.duration_s, long.profile)
    remarks = (*prepared.remarks, *long.check(), *cropped)
    if isinstance(source.signal, EcgRecord):
        # A signal in memory does not wait: it is read again.
        opener = _again(prepared.reference, long.profile, long.derive_leads)
    else:

        def opener(on_share: OnShare) -> ProfiledRecord | WindowStream:
            return stream_windows(long.profile, long, None, on_share)

    return replace(prepared, remarks=remarks, open_windows=opener)


def prepare_ahead(
    references: Iterable[RecordReference],
    profile: SignalProfile,
    settings: PipelineSettings,
) -> Iterator[PreparedRecord]:
    """Yield `prepare` of each reference in order, computed ahead by worker threads."""
    ahead = 2 * settings.batch_size + settings.num_workers
    pending: deque[Future[PreparedRecord]] = deque()
    pool = ThreadPoolExecutor(settings.num_workers, thread_name_prefix="prepare")
    try:
        for reference in references:
            pending.append(pool.submit(prepare, reference, profile, settings.derive_leads))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass
class _Waiting:
    """A recording some of whose windows have not passed the network yet."""

    prepared: PreparedRecord
    numbers: list[int] = field(default_factory=list)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)
    is_complete: bool = True

    @property
    def is_done(self) -> bool:
        return self.is_complete and len(self.logits) == len(self.numbers)

    def reject(self, error: RejectedRecordError) -> None:
        """Drop the results; the recording turned out to be unusable."""
        self.numbers.clear()
        self.logits.clear()
        self.features.clear()
        status, detail = error.reason.value, error.detail
        self.prepared = replace(self.prepared, status=status, detail=detail)


class _Batches:
    """The network, and the windows that wait for it; batches go across recordings."""

    def __init__(
        self, trained: TrainedModel, device: torch.device, settings: PipelineSettings
    ) -> None:
        self.trained, self.device, self.settings = trained, device, settings
        self.windows: list[tuple[_Waiting, dict[str, NDArray[Any]]]] = []

    def add(self, owner: _Waiting, profiled: ProfiledRecord | WindowStream) -> None:
        """Take the windows of a recording, and compute what makes a whole batch."""
        iterator = iter(profiled.windows)
        while True:
            with reject_unexpected():
                window = next(iterator, None)
            if window is None:
                return
            owner.numbers.append(window.number)
            self.windows.append((owner, window_array(window)))
            if len(self.windows) >= self.settings.batch_size:
                self.forward()

    def drop(self, owner: _Waiting) -> None:
        """Forget the windows of a recording that was rejected."""
        self.windows = [entry for entry in self.windows if entry[0] is not owner]

    def forward(self) -> None:
        """Compute one batch, smaller if fewer windows wait."""
        batch = self.windows[: self.settings.batch_size]
        del self.windows[: self.settings.batch_size]
        arrays = [arrays for _, arrays in batch]
        logits, features = _forward(self.trained, arrays, self.device, self.settings)
        for row, (owner, _) in enumerate(batch):
            owner.logits.append(logits[row])
            if features is not None:
                owner.features.append(features[row])


def run_network(
    trained: TrainedModel,
    prepared: Iterable[PreparedRecord],
    device: torch.device,
    settings: PipelineSettings,
    on_share: OnShare = lambda share: None,
) -> Iterator[RecordResult]:
    """Yield the result of each recording, in order.

    Args:
        trained: The model.
        prepared: From `prepare_ahead`.
        device: Where the network runs.
        settings: Batch size, pooling, precision.
        on_share: Called with the share of a long recording that is done.
    """
    quantities = np.array([output.kind == "regression" for output in trained.outputs], bool)
    waiting: deque[_Waiting] = deque()
    batches = _Batches(trained, device, settings)

    def finished() -> Iterator[RecordResult]:
        while waiting and waiting[0].is_done:
            yield _pooled(waiting.popleft(), quantities, settings.pool, trained.profile)

    for item in prepared:
        owner = _Waiting(item)
        waiting.append(owner)
        if item.profiled is not None:
            batches.add(owner, item.profiled)
        elif item.open_windows is not None:
            _add_many(batches, owner, item.open_windows, on_share)
        yield from finished()
    while batches.windows:
        batches.forward()
    yield from finished()


def _add_many(batches: _Batches, owner: _Waiting, opener: Opener, on_share: OnShare) -> None:
    """Pass the windows of a long recording through the network as they are made."""
    owner.is_complete = False
    try:
        with reject_unexpected():
            opened = opener(on_share)
        batches.add(owner, opened)
        if isinstance(opened, WindowStream):
            remarks = left_out_remark(opened.left_out, opened.num_planned)
            owner.prepared = replace(owner.prepared, remarks=(*owner.prepared.remarks, *remarks))
    except RejectedRecordError as error:
        batches.drop(owner)
        owner.reject(error)
    owner.is_complete = True


def _pooled(
    done: _Waiting, quantities: NDArray[np.bool_], pool: str, profile: SignalProfile
) -> RecordResult:
    # The signals are not needed any more, and a million records' would not fit.
    prepared = replace(done.prepared, profiled=None, open_windows=None)
    if not done.logits:
        return RecordResult(prepared)
    every = np.stack(done.logits)
    logits = every.mean(0)
    if pool == "max":  # of quantities the mean: the largest of several ages is not an age
        logits = np.where(quantities, logits, every.max(0))
    features = np.stack(done.features) if done.features else None
    windows = None
    if len(every) > 1:
        starts = [window_start_s(profile, n, prepared.duration_s) for n in done.numbers]
        windows = WindowResults(np.array(starts), every, features)
    return RecordResult(
        prepared,
        logits,
        features.mean(0) if features is not None else None,
        len(every),
        windows,
    )


@torch.inference_mode()
def _forward(
    trained: TrainedModel,
    windows: Sequence[dict[str, NDArray[Any]]],
    device: torch.device,
    settings: PipelineSettings,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    batch = {key: value.to(device) for key, value in collate_windows(windows).items()}
    signal, _, _ = trained.transform(batch, training=False)
    network: Any = trained.model
    enabled = settings.precision == "bf16"
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
        if not settings.with_features:
            return network(signal).float().cpu().numpy(), None
        _, features = network.forward_features(signal)
        logits = network.forward_head(features)
    return logits.float().cpu().numpy(), features.float().cpu().numpy()

"""Recordings through profile and network: read ahead in threads while the network computes.

Reading, lead resolution, checks and the profile's first half run in worker threads (numpy, scipy
and file reads release the interpreter lock), so that a batch is ready when the network wants it.
Results come in the order of the references, and memory holds a few batches whatever their number.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfounder_train.core.errors import RejectedRecordError, RejectReason, UserError
from ecgfounder_train.core.untrusted import reject_unexpected
from ecgfounder_train.evaluation.predict import collate_windows, window_arrays
from ecgfounder_train.inference.checks import (
    check_signal,
    check_windows,
    typical_swing,
    unit_hint,
)
from ecgfounder_train.inference.find import RecordReference
from ecgfounder_train.inference.leads import resolve_leads
from ecgfounder_train.inference.remarks import Remark
from ecgfounder_train.records import EcgRecord, ProfiledRecord, SignalProfile
from ecgfounder_train.weights.trained_model import TrainedModel

POOLS = ("mean", "max")
PRECISIONS = ("32", "bf16")
OK = "ok"


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
        profiled: Its windows; None where it was rejected.
        status: `ok`, or the reject reason.
        detail: Of the rejection.
        remarks: Warnings.
        fs: Native rate in Hz, NaN where it could not be read.
        duration_s: Native length.
    """

    reference: RecordReference
    profiled: ProfiledRecord | None = None
    status: str = OK
    detail: str = ""
    remarks: tuple[Remark, ...] = ()
    fs: float = float("nan")
    duration_s: float = float("nan")


@dataclass(frozen=True)
class RecordResult:
    """What the network says of one recording.

    Shape:
        logits: (num_outputs,) pooled over the windows, None where rejected.
        features: (num_features,) or None.
    """

    prepared: PreparedRecord
    logits: NDArray[np.float32] | None = None
    features: NDArray[np.float32] | None = None

    @property
    def name(self) -> str:
        """What the table calls the recording."""
        return self.prepared.reference.name

    @property
    def num_windows(self) -> int:
        """Windows the network saw."""
        return len(self.prepared.profiled.windows) if self.prepared.profiled else 0


def resolved_record(
    reference: RecordReference, profile: SignalProfile, derive_leads: bool = True
) -> tuple[EcgRecord, tuple[Remark, ...]]:
    """Return a recording with the profile's leads, as recorded otherwise, and what was assumed.

    Raises:
        RejectedRecordError: It cannot be read, or leads are missing.
    """
    source = reference.read()
    record, remarks = resolve_leads(
        source.record, profile.leads, profile.lead_aliases, derive_leads
    )
    return record, (*source.remarks, *remarks)


def prepare(
    reference: RecordReference, profile: SignalProfile, derive_leads: bool = True
) -> PreparedRecord:
    """Return a recording's windows with all warnings, or its rejection; never raises for a file."""
    prepared = PreparedRecord(reference)
    record: EcgRecord | None = None
    try:
        with reject_unexpected():
            record, remarks = resolved_record(reference, profile, derive_leads)
            prepared = replace(
                prepared,
                remarks=(*remarks, *check_signal(record, profile)),
                fs=record.fs,
                duration_s=record.signal.shape[1] / record.fs,
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
    return replace(prepared, profiled=profiled, remarks=(*prepared.remarks, *windows))


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
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    features: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def num_windows(self) -> int:
        return len(self.prepared.profiled.windows) if self.prepared.profiled else 0


def run_network(
    trained: TrainedModel,
    prepared: Iterable[PreparedRecord],
    device: torch.device,
    settings: PipelineSettings,
) -> Iterator[RecordResult]:
    """Yield the result of each recording, in order; batches go across recordings."""
    quantities = np.array([output.kind == "regression" for output in trained.outputs], bool)
    waiting: deque[_Waiting] = deque()
    windows: list[tuple[_Waiting, dict[str, NDArray[Any]]]] = []

    def forward(count: int) -> None:
        batch = windows[:count]
        del windows[:count]
        logits, features = _forward(trained, [arrays for _, arrays in batch], device, settings)
        for row, (owner, _) in enumerate(batch):
            owner.logits.append(logits[row])
            if features is not None:
                owner.features.append(features[row])

    def finished() -> Iterator[RecordResult]:
        while waiting and len(waiting[0].logits) == waiting[0].num_windows:
            yield _pooled(waiting.popleft(), quantities, settings.pool)

    for item in prepared:
        owner = _Waiting(item)
        waiting.append(owner)
        if item.profiled is not None:
            windows.extend((owner, arrays) for arrays in window_arrays(item.profiled))
        while len(windows) >= settings.batch_size:
            forward(settings.batch_size)
        yield from finished()
    while windows:
        forward(settings.batch_size)
    yield from finished()


def _pooled(done: _Waiting, quantities: NDArray[np.bool_], pool: str) -> RecordResult:
    if done.prepared.profiled is None:
        return RecordResult(done.prepared)
    every = np.stack(done.logits)
    logits = every.mean(0)
    if pool == "max":  # the largest of several ages is nobody's age
        logits = np.where(quantities, logits, every.max(0))
    return RecordResult(
        # The signals are not needed any more, and a million records' would not fit.
        replace(done.prepared, profiled=_without_signal(done.prepared.profiled)),
        logits,
        np.stack(done.features).mean(0) if done.features else None,
    )


def _without_signal(profiled: ProfiledRecord) -> ProfiledRecord:
    empty = np.zeros((0, 0), np.int16)
    return replace(profiled, windows=[replace(w, ecg=empty) for w in profiled.windows])


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

"""Signal profiles: the four published preprocessing regimes, and any other, as one ordered list.

A profile has two halves. `SignalProfile.apply` is what happens once, when shards are built: leads
by name, missing samples, resampling and filters in the profile's order, windows, statistics. The
second half, `LoadNormalisation`, happens at every load and can be changed without rewriting a
shard; `normalise` is its numpy reference.

Source: per profile and key in configs/signal/ (arXiv 2410.04133, PKUDigitalHealth/ECGFounder).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ecgfounder_train.core.errors import (
    RejectedRecordError,
    RejectReason,
    UserError,
    did_you_mean,
)
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.records import filters
from ecgfounder_train.records.filters import Signal
from ecgfounder_train.records.leads import STANDARD_LEADS, canonical_lead
from ecgfounder_train.records.normalisation import NORMALISATION_KINDS, LoadNormalisation
from ecgfounder_train.records.record import EcgRecord

# Part of every fingerprint: raise it when the same parameters would give other numbers.
SIGNAL_CODE_VERSION = 1
INT16_LIMIT = 32767  # symmetric; -32768 stays free, WFDB uses it for a missing sample

# What each stage takes: key -> default (None: must be given). All numbers are floats but `order`.
_STAGE_KEYS: dict[str, dict[str, Any]] = {
    "resample": {"method": "linear"},
    "notch": {"frequency_hz": None, "quality": 30.0},
    "highpass": {"cutoff_hz": None, "order": 2},
    "lowpass": {"cutoff_hz": None, "order": 2},
    "fir_lowpass": {"cutoff_hz": None, "transition_hz": 12.5},
    "bandpass": {"low_hz": None, "high_hz": None, "order": 4},
    "median": {"window_s": 0.4},
    "statistics": {},
    "decimate": {},
    "window": {},
}
_FILTERS = ("notch", "highpass", "lowpass", "fir_lowpass", "bandpass", "median")
_CHOICES = {
    "resample.method": ("linear", "polyphase"),
    "windows.policy": ("consecutive", "centre", "first"),
    "windows.tail": ("drop", "pad"),
    "windows.pad": ("end", "centre", "reject"),
    "normalisation.kind": NORMALISATION_KINDS,
}
_WINDOW_KEYS = {"policy": "consecutive", "tail": "drop", "pad": "end", "min_duration_s": 5.0}
_LIMIT_KEYS = {
    "max_abs_mv": 20.0,
    "max_missing_fraction": 0.01,
    "constant_leads": True,
    "min_fs": 50.0,
    "max_fs": 20000.0,
}
_NORMALISATION_KEYS = {
    "kind": "joint",
    "eps": 1e-8,
    "clip": None,
    "centre": True,
    "scale_mv": 1.0,
}


@dataclass
class Window:
    """One training sample.

    Shape:
        ecg: int16 (num_leads, num_samples) in microvolts, 0 outside the valid part.
        stats: float32 (num_leads, 2), mean and standard deviation in mV at the profile's point.
    """

    number: int
    ecg: NDArray[np.int16]
    stats: NDArray[np.float32]
    valid_start: int
    valid_num_samples: int


@dataclass
class ProfiledRecord:
    """The windows of one record after the first half of a profile."""

    windows: list[Window]
    native_fs: float
    dropped_stages: tuple[str, ...]
    derived_leads: tuple[str, ...]


@dataclass(frozen=True)
class SignalProfile:
    """Preprocessing of a signal before the network. Build it with `from_config`."""

    name: str
    leads: tuple[str, ...]
    fs: float
    duration_s: float
    filter_fs: float
    stages: tuple[str, ...]
    stage_parameters: dict[str, dict[str, Any]]
    windows: dict[str, Any]
    limits: dict[str, Any]
    load_normalisation: LoadNormalisation
    derive_leads: bool = False
    lead_aliases: dict[str, str] = field(default_factory=dict)
    site_overrides: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "SignalProfile":
        """Return the profile of a `configs/signal/*.yaml` mapping.

        Raises:
            UserError: An unknown key or stage, or an invalid value; the message names it.
        """
        return _parse_profile(config)

    @property
    def num_samples(self) -> int:
        """Length of a window."""
        return round(self.fs * self.duration_s)

    @property
    def shape(self) -> tuple[int, int]:
        """(num_leads, num_samples) of every window."""
        return len(self.leads), self.num_samples

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping `from_config` takes, every default written out."""
        return {
            "name": self.name,
            **self._build_dict(),
            "normalisation": self.load_normalisation.to_dict(),
        }

    def _build_dict(self) -> dict[str, Any]:
        return {
            "leads": list(self.leads),
            "derive_leads": self.derive_leads,
            "lead_aliases": self.lead_aliases,
            "fs": self.fs,
            "duration_s": self.duration_s,
            "filter_fs": self.filter_fs,
            "stages": list(self.stages),
            **self.stage_parameters,
            "windows": self.windows,
            "limits": self.limits,
            "site_overrides": self.site_overrides,
        }

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of everything that changes a number the network sees (not of the name)."""
        return fingerprint(
            {"build": self.build_fingerprint, "normalisation": self.load_normalisation.to_dict()}
        )

    @cached_property
    def build_fingerprint(self) -> str:
        """Short hash of the first half: shards are interchangeable exactly if it is the same."""
        return fingerprint({"version": SIGNAL_CODE_VERSION, **self._build_dict()})

    def apply(self, record: EcgRecord, site: str | None = None) -> ProfiledRecord:
        """Return the record's windows after the first half of the profile.

        Raises:
            RejectedRecordError: The record does not meet the profile's limits.
        """
        self.check_rate(record.fs)
        record = self.to_leads(record)
        self.check_duration(record.signal.shape[1] / record.fs, record.fs)
        ecg = self.check_limits(record.signal)
        return self._run(ecg, record, self.parameters_of(site))

    def check_rate(self, fs: float) -> None:
        """Reject a sampling rate (Hz) outside the limits."""
        if not self.limits["min_fs"] <= fs <= self.limits["max_fs"]:
            raise RejectedRecordError(
                RejectReason.BAD_SAMPLING_RATE,
                f"{fs:g} Hz is outside {self.limits['min_fs']:g} to {self.limits['max_fs']:g} Hz",
            )

    def to_leads(self, record: EcgRecord) -> EcgRecord:
        """Return the record with the profile's leads; raises as `EcgRecord.to_standard_leads`."""
        return record.to_standard_leads(self.leads, self.derive_leads, self.lead_aliases)

    def parameters_of(self, site: str | None) -> dict[str, dict[str, Any]]:
        """Return what each stage takes at a site."""
        overrides = self.site_overrides.get(site or "", {})
        return {
            stage: {**self.stage_parameters.get(stage, {}), **overrides.get(stage, {})}
            for stage in self.stages
        }

    def check_duration(self, duration_s: float, fs: float) -> None:
        """Reject a recording that is too short."""
        shortest = self.windows["min_duration_s"]
        if self.windows["pad"] == "reject":
            shortest = max(shortest, self.duration_s)
        # Half a sample of grace: 4999.5 samples at 500 Hz are 10 s.
        if duration_s + 0.5 / fs < shortest:
            raise RejectedRecordError(
                RejectReason.TOO_SHORT, f"{duration_s:.2f} s, shorter than {shortest:g} s"
            )

    def check_limits(self, signal: NDArray[np.floating]) -> Signal:
        """Return the signal of the profile's leads in float64 without gaps, or reject it."""
        low, high = signal.min(axis=1), signal.max(axis=1)  # NaN where a sample is missing
        ecg = signal.astype(np.float64)
        if np.isnan(low).any():
            missing = np.isnan(signal).mean(axis=1)
            worst = int(missing.argmax())
            if missing[worst] >= self.limits["max_missing_fraction"]:
                raise RejectedRecordError(
                    RejectReason.MISSING_SAMPLES,
                    f"{missing[worst]:.1%} of lead {self.leads[worst]} is missing",
                )
            ecg = filters.interpolate_missing(ecg)
            low, high = ecg.min(axis=1), ecg.max(axis=1)
        if not (low.any() or high.any()):
            raise RejectedRecordError(RejectReason.ALL_ZERO, "every sample is zero")
        if self.limits["constant_leads"] and (low == high).any():
            flat = [lead for lead, same in zip(self.leads, low == high, strict=True) if same]
            raise RejectedRecordError(
                RejectReason.CONSTANT_LEAD, f"constant throughout: {', '.join(flat)}"
            )
        peak = max(float(high.max()), -float(low.min()))
        if not peak <= self.limits["max_abs_mv"]:
            raise RejectedRecordError(
                RejectReason.AMPLITUDE,
                f"{peak:.4g} mV, beyond {self.limits['max_abs_mv']:g} mV",
            )
        return ecg

    def _run(
        self, ecg: Signal, record: EcgRecord, parameters: dict[str, dict[str, Any]]
    ) -> ProfiledRecord:
        """Take the signal through the stages in order."""
        kept, dropped = within_nyquist(self.stages, parameters, record.fs)
        stats: list[NDArray[np.float32]] = []
        ecg = self.through_stages(
            ecg, record.fs, kept, parameters, lambda signal, fs: stats.append(moments(signal))
        )
        windows = [
            self.window(number, ecg[:, at : at + length], stats[0] if stats else None)
            for number, (at, length) in enumerate(self.spans(ecg.shape[1]))
        ]
        return ProfiledRecord(windows, record.fs, dropped, record.derived_leads)

    def working_fs(self, stages: Sequence[str], fs: float) -> float:
        """Return the rate that a recording at `fs` is filtered at, Hz."""
        # Without a filter there is nothing to raise the rate for: straight to the target.
        return max(fs, self.filter_fs) if any(s in _FILTERS for s in stages) else self.fs

    def through_stages(
        self,
        ecg: Signal,
        fs: float,
        stages: Sequence[str],
        parameters: Mapping[str, dict[str, Any]],
        on_statistics: Callable[[Signal, float], object],
    ) -> Signal:
        """Return the signal at the target rate after all stages before the windows.

        Args:
            ecg: Of the profile's leads, without gaps, in mV.
            fs: Its rate, Hz.
            stages: Those within Nyquist, in order.
            parameters: What each stage takes.
            on_statistics: Given signal and rate where the statistics are taken, if that is before
                the windows; after them each window has its own.
        """
        working_fs = self.working_fs(stages, fs)
        for stage in stages:
            options = parameters[stage]
            if stage == "resample":
                if fs < working_fs:
                    # Straight lines are what was published, for the way up to the final rate. On a
                    # detour (100 Hz filtered at 500 and taken back to 100) they would cost 4 dB
                    # at 40 Hz for nothing.
                    straight = options["method"] == "linear" and self.fs >= working_fs
                    change = filters.resample_linear if straight else filters.resample_polyphase
                    ecg, fs = change(ecg, fs, working_fs), working_fs
            elif stage == "decimate":
                if fs != self.fs:
                    ecg, fs = filters.resample_polyphase(ecg, fs, self.fs), self.fs
            elif stage == "window":
                break
            elif stage == "statistics":
                on_statistics(ecg, fs)
            else:
                ecg = _filter(ecg, fs, stage, options)
        return ecg

    def window(self, number: int, part: Signal, stats: NDArray[np.float32] | None) -> Window:
        """Return a window from its valid samples, with its own statistics where none are given.

        Raises:
            RejectedRecordError: SATURATED, beyond the range of int16 in microvolts.
        """
        length = part.shape[1]
        short = length < self.num_samples and number == 0 and self.windows["pad"] == "centre"
        start = (self.num_samples - length) // 2 if short else 0
        own = moments(part) if stats is None else stats
        window = np.zeros(self.shape, np.int16)
        microvolts = part * 1000.0
        np.rint(microvolts, out=microvolts)
        if not (microvolts.max() <= INT16_LIMIT and microvolts.min() >= -INT16_LIMIT):
            raise RejectedRecordError(
                RejectReason.SATURATED, "beyond the int16 range of microvolts after filtering"
            )
        window[:, start : start + length] = microvolts
        return Window(number, window, own, start, length)

    def spans(self, total: int) -> list[tuple[int, int]]:
        """Return where each window begins in `total` samples at the target rate, and its length."""
        size = self.num_samples
        if total <= size:
            return [(0, total)]
        if self.windows["policy"] == "first":
            return [(0, size)]
        if self.windows["policy"] == "centre":
            return [((total - size) // 2, size)]
        spans = [(start, size) for start in range(0, total - size + 1, size)]
        rest = total % size
        if self.windows["tail"] == "pad" and rest >= self.windows["min_duration_s"] * self.fs:
            spans.append((total - rest, rest))
        return spans


def moments(ecg: Signal) -> NDArray[np.float32]:
    """Return float32 (num_leads, 2): mean and (population) standard deviation per lead."""
    mean = ecg.mean(axis=1)
    centred = ecg - mean[:, None]
    np.multiply(centred, centred, out=centred)
    return np.stack([mean, np.sqrt(centred.mean(axis=1))], axis=1).astype(np.float32)


def within_nyquist(
    stages: Sequence[str], parameters: dict[str, dict[str, Any]], fs: float
) -> tuple[list[str], tuple[str, ...]]:
    """Return the stages within the Nyquist rate of a recording at `fs`, and the dropped ones.

    Judged by the native rate: at 100 Hz nothing of 60 Hz was recorded, at any rate of the filter.
     A band-pass whose upper edge is out of reach keeps its lower edge.
    """
    kept: list[str] = []
    dropped: list[str] = []
    for stage in stages:
        options = parameters[stage]
        edge = options.get("frequency_hz", options.get("cutoff_hz", options.get("low_hz", 0.0)))
        if stage in _FILTERS and edge >= fs / 2:
            dropped.append(stage)
            continue
        kept.append(stage)
        if stage == "bandpass" and options["high_hz"] >= fs / 2:
            dropped.append("bandpass.high_hz")
            parameters[stage] = {**options, "high_hz": None}
    return kept, tuple(dropped)


def _filter(ecg: Signal, fs: float, stage: str, options: dict[str, Any]) -> Signal:
    if stage == "notch":
        return filters.notch(ecg, fs, options["frequency_hz"], options["quality"])
    if stage == "fir_lowpass":
        return filters.fir_lowpass(ecg, fs, options["cutoff_hz"], options["transition_hz"])
    if stage == "median":
        return filters.subtract_running_median(ecg, fs, options["window_s"])
    order = options["order"]
    if stage in ("highpass", "lowpass"):
        return filters.butterworth(ecg, fs, stage, order, options["cutoff_hz"])
    if options["high_hz"] is None:
        return filters.butterworth(ecg, fs, "highpass", order, options["low_hz"])
    return filters.butterworth(ecg, fs, "bandpass", order, options["low_hz"], options["high_hz"])


def _parse_profile(config: Mapping[str, Any]) -> SignalProfile:
    known = (
        *("name", "leads", "derive_leads", "lead_aliases", "fs", "duration_s", "filter_fs"),
        *("stages", "windows", "limits", "normalisation", "site_overrides"),
        *(stage for stage, keys in _STAGE_KEYS.items() if keys),
    )
    _refuse_unknown(config, known, "signal")
    for key in ("name", "stages"):
        if key not in config:
            raise UserError(f"signal.{key} is missing. Start from one of configs/signal/*.yaml.")
    stages = _parse_stages(config["stages"])
    parameters = {
        stage: _section(config.get(stage), _STAGE_KEYS[stage], f"signal.{stage}")
        for stage in stages
        if _STAGE_KEYS[stage]
    }
    overrides: dict[str, dict[str, dict[str, Any]]] = {}
    by_site = _mapping(config.get("site_overrides") or {}, "signal.site_overrides")
    for site, sections in by_site.items():
        where = f"signal.site_overrides.{site}"
        _refuse_unknown(_mapping(sections, where), parameters, where)
        overrides[str(site)] = {
            stage: _only_given(values, parameters[stage], f"{where}.{stage}")
            for stage, values in sections.items()
        }
    normalisation = _section(
        config.get("normalisation"), _NORMALISATION_KEYS, "signal.normalisation"
    )
    profile = SignalProfile(
        name=str(config["name"]),
        leads=_parse_leads(config.get("leads", STANDARD_LEADS)),
        fs=_number(config.get("fs", 500), "signal.fs"),
        duration_s=_number(config.get("duration_s", 10), "signal.duration_s"),
        filter_fs=_number(config.get("filter_fs", 500), "signal.filter_fs"),
        stages=stages,
        stage_parameters=parameters,
        windows=_section(config.get("windows"), _WINDOW_KEYS, "signal.windows"),
        limits=_section(config.get("limits"), _LIMIT_KEYS, "signal.limits"),
        load_normalisation=LoadNormalisation(**normalisation),
        derive_leads=_boolean(config.get("derive_leads", False), "signal.derive_leads"),
        lead_aliases=_parse_aliases(config.get("lead_aliases")),
        site_overrides=overrides,
    )
    _check_rates(profile)
    return profile


def _parse_stages(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UserError(f"signal.stages={value!r} is not a list of stages.")
    stages = tuple(str(stage) for stage in value)
    for stage in stages:
        if stage not in _STAGE_KEYS:
            raise UserError(
                f"signal.stages names {stage!r}, which is not a stage."
                f"{did_you_mean(stage, _STAGE_KEYS)}"
            )
        if stages.count(stage) > 1:
            raise UserError(f"signal.stages names {stage!r} twice; each stage comes at most once.")
    for stage in ("resample", "decimate", "window", "statistics"):
        if stage not in stages:
            raise UserError(
                f"signal.stages lacks {stage!r}: it must hold resample, decimate, window and "
                "statistics, so that any record reaches the target rate and length."
            )
    order = [stage for stage in stages if stage != "statistics"]
    filters_at = [order.index(stage) for stage in order if stage in _FILTERS]
    if (
        order[-1] != "window"
        or order[-2] != "decimate"
        or any(position < order.index("resample") for position in filters_at)
    ):
        raise UserError(
            "signal.stages must run resample, then filters, then decimate, then window; "
            "statistics may stand anywhere (its place is where mean and deviation are taken)."
        )
    return stages


def _parse_leads(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise UserError(f"signal.leads={value!r} is not a list of leads, such as [I] or [I,II].")
    leads = tuple(canonical_lead(str(lead)) for lead in value)
    for lead in leads:
        if lead not in STANDARD_LEADS:
            raise UserError(
                f"signal.leads names {lead!r}, which is not a standard lead."
                f"{did_you_mean(lead, STANDARD_LEADS)}"
            )
        if leads.count(lead) > 1:
            raise UserError(f"signal.leads names {lead!r} twice.")
    return leads


def _parse_aliases(value: Any) -> dict[str, str]:
    aliases = {
        str(name): canonical_lead(str(lead))
        for name, lead in _mapping(value or {}, "signal.lead_aliases").items()
    }
    for name, lead in aliases.items():
        if lead not in STANDARD_LEADS:
            raise UserError(
                f"signal.lead_aliases.{name}={lead!r} is not a standard lead."
                f"{did_you_mean(lead, STANDARD_LEADS)}"
            )
    return dict(sorted(aliases.items()))


def _check_rates(profile: SignalProfile) -> None:
    if not 1 <= profile.num_samples <= 1 << 22:
        raise UserError(
            f"signal.fs={profile.fs:g} and signal.duration_s={profile.duration_s:g} make windows "
            f"of {profile.num_samples} samples; 1 to {1 << 22} are possible."
        )
    if profile.filter_fs * profile.duration_s > 1 << 22:
        raise UserError(
            f"signal.filter_fs={profile.filter_fs:g} is too high: a window may have {1 << 22} "
            "samples at that rate."
        )
    for owner in (profile.stage_parameters, *profile.site_overrides.values()):
        for stage, options in owner.items():
            for key, value in options.items():
                if key.endswith("_hz") and value >= profile.filter_fs / 2:
                    raise UserError(
                        f"signal.{stage}.{key}={value:g} is not below half of "
                        f"signal.filter_fs={profile.filter_fs:g}, the rate filters run at."
                    )
    for site in (None, *profile.site_overrides):
        band = profile.parameters_of(site).get("bandpass")
        if band and band["low_hz"] >= band["high_hz"]:
            raise UserError("signal.bandpass.low_hz must be below signal.bandpass.high_hz.")


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}={value!r} is not a mapping of keys to values.")
    return value


def _refuse_unknown(config: Mapping[str, Any], known: Any, where: str) -> None:
    for key in config:
        if key not in known:
            raise UserError(f"Unknown key {where}.{key}.{did_you_mean(str(key), known)}")


def _section(value: Any, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return every key of `defaults` with its checked value."""
    given = _only_given(value or {}, defaults, where)
    for key, default in defaults.items():
        if key not in given and default is None and key != "clip":
            raise UserError(f"{where}.{key} is missing.")
    return {key: given.get(key, default) for key, default in defaults.items()}


def _only_given(value: Any, defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
    given = _mapping(value, where)
    _refuse_unknown(given, defaults, where)
    return {
        key: _value(given[key], defaults[key], key, f"{where}.{key}")
        for key in defaults
        if key in given
    }


def _value(value: Any, default: Any, key: str, where: str) -> Any:
    choices = _CHOICES.get(".".join(where.split(".")[-2:]))
    if choices is not None:
        if value not in choices:
            raise UserError(
                f"{where}={value!r} is not one of these.{did_you_mean(str(value), choices)}"
            )
        return str(value)
    if isinstance(default, bool):
        return _boolean(value, where)
    if key == "clip" and value is None:
        return None
    number = _number(value, where, allow_zero=key in ("eps", "max_missing_fraction"))
    if key == "max_missing_fraction" and number > 1:
        raise UserError(f"{where}={value!r} is not a fraction from 0 to 1.")
    if key == "order":
        if number not in range(1, 11):
            raise UserError(f"{where}={value!r} is not a whole number from 1 to 10.")
        return int(number)
    return number


def _number(value: Any, where: str, allow_zero: bool = False) -> float:
    number = float(value) if isinstance(value, int | float) and value is not True else math.nan
    if not (math.isfinite(number) and (number > 0 or (allow_zero and number == 0))):
        raise UserError(f"{where}={value!r} is not a positive number.")
    return number


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where}={value!r} is not true or false.")
    return value

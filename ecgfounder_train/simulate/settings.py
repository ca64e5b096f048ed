"""The settings of a synthetic archive, checked: every quirk of HEEDB has its rate here."""

import copy
from collections.abc import Mapping
from typing import Any

from ecgfounder_train.core.config import stated_in
from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.simulate.prevalence import prevalences

SITES = ("I0001", "I0006")


def _defaults() -> dict[str, Any]:
    stated = stated_in("simulate.yaml")
    # An archive's folder has no default; on a command line 5.0 is a number; `prevalences` are
    # completed by their own module.
    own = {key: value for key, value in stated.items() if key not in ("out", "gallery")}
    return own | {"layout": f"{stated['layout']:.1f}", "prevalences": {}}


DEFAULTS: dict[str, Any] = _defaults()
"""configs/simulate.yaml. Shares are of records unless the name says patients."""

LAYOUTS = ("5.0", "4.0", "2.0")
_NOT_RATES = {"num_patients", "seed", "num_workers", "duration_s", "blank_patient_ids", "mains_hz"}


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings, defaults filled in.

    Raises:
        UserError: An unknown key, a value of the wrong kind, an impossible rate.
    """
    settings = copy.deepcopy(DEFAULTS)
    _merge(settings, config, "")
    for name, value in settings.items():
        if isinstance(value, float) and name not in _NOT_RATES:
            _check_rate(name, value)
    for site in SITES:
        for name, value in settings["sites"][site].items():
            if name != "ecgs_per_patient":
                _check_rate(f"sites.{site}.{name}", value)
        if settings["sites"][site]["ecgs_per_patient"] < 1:
            raise UserError(
                f"sites.{site}.ecgs_per_patient is {settings['sites'][site]['ecgs_per_patient']}; "
                "every patient has at least 1."
            )
    for group in ("bad_records", "recording"):
        for name, value in settings[group].items():
            _check_rate(f"{group}.{name}", value)
    if (total := sum(settings["bad_records"].values())) > 1:
        raise UserError(f"bad_records add up to {total:.3g}; a record is bad in one way at most.")
    if abs((total := sum(settings["sites"][site]["share"] for site in SITES)) - 1) > 1e-6:
        raise UserError(f"sites.*.share add up to {total:.3g}; they must add up to 1.")
    for name, least in (("num_patients", 1), ("num_workers", 1), ("seed", 0)):
        if settings[name] < least:
            raise UserError(f"{name} is {settings[name]}; at least {least} is needed.")
    if settings["blank_patient_ids"] < 0:
        raise UserError("blank_patient_ids is negative; 0 gives none.")
    if not 5 <= settings["duration_s"] <= 60:
        raise UserError(f"duration_s is {settings['duration_s']}; 5 to 60 seconds are possible.")
    if settings["mains_hz"] not in (50.0, 60.0):
        raise UserError(f"mains_hz is {settings['mains_hz']:g}; the mains hum at 50 or at 60 Hz.")
    settings["prevalences"] = prevalences(settings["prevalences"])
    return settings


def _merge(settings: dict[str, Any], changes: Mapping[str, Any], where: str) -> None:
    for key, value in changes.items():
        name = f"{where}{key}"
        if where == "prevalences.":
            settings[key] = value  # Checked by `prevalences`, which has the list of findings.
            continue
        if key not in settings:
            raise UserError(f"Unknown setting {name!r}." + did_you_mean(str(key), settings))
        default = settings[key]
        if isinstance(default, dict):
            if not isinstance(value, Mapping):
                raise UserError(f"{name} is {value!r}; it holds settings of its own.")
            _merge(default, value, f"{name}.")
        elif isinstance(default, str):
            # On a command line 5.0 is a number.
            text = f"{value:.1f}" if isinstance(value, (int, float)) else str(value)
            if text not in LAYOUTS:
                raise UserError(f"{name} is {value!r}; one of {', '.join(LAYOUTS)} is needed.")
            settings[key] = text
        elif isinstance(default, bool):
            if not isinstance(value, bool):
                raise UserError(f"{name} is {value!r}; true or false is needed.")
            settings[key] = value
        elif isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{name} is {value!r}; a number is needed.")
        elif isinstance(default, int):
            if value != int(value):
                raise UserError(f"{name} is {value!r}; a whole number is needed.")
            settings[key] = int(value)
        else:
            settings[key] = float(value)


def _check_rate(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value:g}; a rate is between 0 and 1.")

"""The benchmarks, one module each: the reference and ours side by side on the same data.

A module has a frozen dataclass `Settings` (its keys in `configs/bench.yaml`), `SMALL` (what
`size=small` changes) and `run(settings) -> Outcome`.
"""

import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

from ecgfounder_train.core.config import parse_settings
from ecgfounder_train.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Outcome:
    """A table for people, and one flat record for machines with `bench` and `ratio`."""

    table: str
    record: dict[str, Any]


def benchmark_names() -> list[str]:
    """Return the names the leading word of `bench.py` may take."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )


def run_benchmark(name: str, size: str, overrides: Mapping[str, Any]) -> Outcome:
    """Run one benchmark and return its outcome; the record also says when and on what machine.

    `load` is the machine's load average at the start: 0 on a quiet one.

    Args:
        size: "full", or "small", which ends within a minute.
        overrides: Settings of this benchmark; None takes the size's own value.

    Raises:
        UserError: The name, the size or a setting is unknown.
    """
    if name not in benchmark_names():
        raise UserError(f"There is no benchmark {name!r}." + did_you_mean(name, benchmark_names()))
    if size not in ("small", "full"):
        raise UserError(f"size={size} is neither small nor full.")
    module = import_module(f"{__name__}.{name}")
    given = {key: value for key, value in overrides.items() if value is not None}
    sized = module.SMALL if size == "small" else {}
    settings = parse_settings(module.Settings, {**sized, **given}, name)
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    outcome: Outcome = module.run(settings)
    facts = {"size": size, "date": date.today().isoformat(), "machine": machine(), "load": load}
    return Outcome(outcome.table, {"bench": name, **outcome.record, **facts})


def machine() -> str:
    """Return the processor and how many cores this process may use; no name of the host."""
    from ecgfounder_train.metrics.kernels import num_cores

    model = "unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {num_cores()} cores"

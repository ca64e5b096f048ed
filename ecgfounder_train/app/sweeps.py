"""Hydra's own command line: sweeps with --multirun, and flags that show the config."""

import hashlib
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from ecgfounder_train.app.composition import quoted
from ecgfounder_train.app.sections import register
from ecgfounder_train.core.config import CONFIGS

_TRAINING_VERBS = ("pretrain", "finetune")
_STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGUSR1)


def run_under_hydra(verb: str, guarded: Callable[[Callable[[], DictConfig]], int]) -> NoReturn:
    """Let Hydra run a script, for a sweep (--multirun) or to show its config.

    Args:
        verb: Whose config is composed.
        guarded: Runs the task on a config and returns the exit status.

    Each member of a sweep runs as if its own command had been given: further ranks are started with
    that command, and a member whose run has no name of its own is named after its overrides.
    """
    register()
    script, *arguments = sys.argv
    overrides = [quoted(item) for item in arguments if not item.startswith("-") and "=" in item]
    flags = [item for item in arguments if item.startswith("-") or "=" not in item]
    # Hydra takes overrides in one piece only, so flags such as --multirun go behind them.
    sys.argv = [script, *overrides, *flags]
    statuses = [0]

    def job(config: DictConfig) -> int:
        hydra_config = HydraConfig.instance()
        own, former = list(HydraConfig.get().overrides.task), (hydra_config.cfg, sys.argv)
        if verb in _TRAINING_VERBS:
            own = _named_apart(own, overrides)
            with open_dict(config):
                config["run"] = _run_name(own, str(config["run"]))
        # Lightning starts further ranks in Hydra's way where Hydra's config is set.
        hydra_config.cfg, sys.argv = None, [script, *own]
        try:
            statuses.append(guarded(lambda: config))
        finally:
            hydra_config.cfg, sys.argv = former
        if statuses[-1] in _STOPPED:
            sys.exit(statuses[-1])  # or Hydra would begin the next member
        return statuses[-1]

    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=verb)(job)()
    # Hydra drops what a job returns; a sweep has failed where one of its jobs has.
    sys.exit(max(statuses))


def _named_apart(own: list[str], asked: list[str]) -> list[str]:
    """Return the overrides of a sweep's member with a run name that no other member has.

    Args:
        own: Overrides of the member.
        asked: Overrides of the sweep; what is not among them differs between members.
    """
    swept = [item for item in own if item not in asked and not item.startswith("run=")]
    name = _run_name(own, "")
    asked_name = next((item for item in asked if item.startswith("run=")), "")
    if not swept or not name or "${" in asked_name:
        return own
    apart = re.sub(r"[^A-Za-z0-9._+-]+", "_", "-".join([name, *swept])).replace("+", "")
    if len(apart) > 120:
        apart = f"{apart[:100]}-{hashlib.sha256(apart.encode()).hexdigest()[:12]}"
    return [*(item for item in own if not item.startswith("run=")), quoted(f"run={apart}")]


def _run_name(overrides: list[str], default: str) -> str:
    """Return the run's name that overrides give, without quotes."""
    names = [item.partition("=")[2].strip("'\"") for item in overrides if item.startswith("run=")]
    return names[-1] if names else default

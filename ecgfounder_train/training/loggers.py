"""TensorBoard and wandb beside metrics.csv; neither learns where or on what path a run happens."""

import hashlib
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from typing_extensions import override

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.run_directory import RunDirectory

KINDS = ("csv", "tensorboard", "wandb")


def logger_kind(config: Mapping[str, Any]) -> str:
    """Return the kind of a config's `logger` section.

    Raises:
        UserError: It is none of `KINDS`.
    """
    kind = str(config.get("kind", "csv"))
    if kind not in KINDS:
        raise UserError(f"logger.kind={kind!r} is unknown." + did_you_mean(kind, KINDS))
    return kind


def create_loggers(
    config: Mapping[str, Any], run: RunDirectory, hyperparameters: Mapping[str, Any]
) -> list[Logger]:
    """Return the loggers of a config's `logger` section; metrics.csv is written in any case.

    Args:
        config: `kind` and its parameters.
        run: The run's directory, under which loggers keep their files.
        hyperparameters: What may leave the machine: the config without its paths.
    """
    kind = logger_kind(config)
    if kind == "tensorboard":
        _keep_host_out_of_file_names()
        return [TensorBoardLogger(run.path, name="tensorboard", version="")]
    if kind == "wandb":
        return [_wandb(config, run, hyperparameters)]
    return []


def _keep_host_out_of_file_names() -> None:
    """Let TensorBoard name its files events.out.tfevents.TIME.host.PID, without this machine.

    Its writer has no setting for it, and opens further files during the run.
    """
    from tensorboard.summary.writer import event_file_writer

    event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")


def _wandb(
    config: Mapping[str, Any], run: RunDirectory, hyperparameters: Mapping[str, Any]
) -> Logger:
    with needs("wandb", "logger=wandb"):
        import wandb

    # Without an account wandb asks for one on the terminal, or raises on a compute node.
    mode = config.get("mode") or ("online" if _has_account() else "offline")
    # wandb must not record the program, its arguments, the host or its environment.
    settings = wandb.Settings(
        host="",
        username="",
        email="",
        program="",
        root_dir=str(run.path),
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        disable_git=True,
        disable_code=True,
        save_code=False,
        console="off",
        silent=True,
        # Training waits for the first answer: a server that cannot be reached is given up soon.
        init_timeout=30.0,
    )
    # By itself it waits for its server without end, GPUs and all, if that vanishes during the run.
    # Not every version that is allowed knows the setting.
    if "finish_timeout" in wandb.Settings.model_fields:
        settings.finish_timeout = float(config.get("finish_timeout_s", 60.0))
    run_id = hashlib.sha256(run.name.encode()).hexdigest()[:16]
    return FinishingWandbLogger(
        name=run.name,
        id=run_id,
        project=str(config.get("project", "ecgfounder_train")),
        save_dir=str(run.path),
        offline=mode == "offline",
        # Offline `must` starts again at step 0; our own id and step make `allow` safe.
        resume="allow",
        settings=settings,
        config=dict(hyperparameters),
        log_model=False,
    )


class FinishingWandbLogger(WandbLogger):
    """wandb that is over when the training is.

    By itself it ends with the process: when the other ranks have ended, and SLURM would not wait.
    """

    @override
    def finalize(self, status: str) -> None:
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish()


def _has_account() -> bool:
    import wandb

    return bool(os.environ.get("WANDB_API_KEY") or wandb.api.api_key)

"""TensorBoard and wandb beside metrics.csv; neither is given a host name or a path."""

import os
import secrets
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from typing_extensions import override

from ecgfounder_train.core.extras import needs
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.settings.training import CsvLogger
from ecgfounder_train.settings.training import WandbLogger as WandbSettings


def logger_settings(config: Mapping[str, Any]) -> CsvLogger | WandbSettings:
    """Return the settings of a config's `logger` section.

    Raises:
        UserError: A kind, key or value is unknown.
    """
    section = WandbSettings if config.get("kind") == "wandb" else CsvLogger
    return section.from_config(config)


def create_loggers(
    settings: CsvLogger | WandbSettings, run: RunDirectory, hyperparameters: Mapping[str, Any]
) -> list[Logger]:
    """Return Lightning's loggers of a run; metrics.csv is written in any case.

    Args:
        settings: Which ones.
        run: The run's directory, under which loggers keep their files.
        hyperparameters: What may leave the machine: the config without its paths.
    """
    if settings.kind == "tensorboard":
        _keep_host_out_of_file_names()
        return [TensorBoardLogger(run.path, name="tensorboard", version="")]
    if isinstance(settings, WandbSettings):
        return [_wandb(settings, run, hyperparameters)]
    return []


def _keep_host_out_of_file_names() -> None:
    """Let TensorBoard name its files events.out.tfevents.TIME.host.PID, without this machine.

    Its writer has no setting for it, and opens further files during the run.
    """
    from tensorboard.summary.writer import event_file_writer

    event_file_writer.socket = SimpleNamespace(gethostname=lambda: "host")


def _wandb(logger: WandbSettings, run: RunDirectory, hyperparameters: Mapping[str, Any]) -> Logger:
    with needs("wandb", "logger=wandb"):
        import wandb

    # Without an account wandb prompts for one on the terminal, or raises on a compute node.
    mode = logger.mode or ("online" if _has_account() else "offline")
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
        # Training waits for the first answer, so the timeout of an unreachable server is short.
        init_timeout=30.0,
    )
    # By itself it waits for its server for ever, GPUs reserved, if that is lost during the run.
    # Not every allowed version has the setting.
    if "finish_timeout" in wandb.Settings.model_fields:
        settings.finish_timeout = logger.finish_timeout_s
    return FinishingWandbLogger(
        name=run.name,
        id=_wandb_id(run),
        project=logger.project,
        save_dir=str(run.path),
        offline=mode == "offline",
        # Offline `must` starts again at step 0; our own id and step make `allow` safe.
        resume="allow",
        settings=settings,
        config=dict(hyperparameters),
        log_model=False,
    )


def _wandb_id(run: RunDirectory) -> str:
    """Return the id of a run at wandb, made once and kept in its directory.

    Two runs of one name, in another folder or begun from scratch, are two runs there too.
    """
    if run.wandb_id_file.is_file() and (known := run.wandb_id_file.read_text().strip()):
        return known
    # Versions before wrote none: the id is the end of the names of wandb's own folders.
    earlier = sorted((run.path / "wandb").glob("*run-*-*"))
    new = earlier[-1].name.rpartition("-")[2] if earlier else secrets.token_hex(8)
    with atomic_file(run.wandb_id_file, "w") as handle:
        handle.write(new)
    return new


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

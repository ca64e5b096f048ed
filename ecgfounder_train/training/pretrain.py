"""Train or resume one run: the config in, an exit code out."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ecgfounder_train.core.commands import command
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.logging import get_logger
from ecgfounder_train.core.ranks import Launch, is_rank_zero
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.loader.cache import is_url, open_shards
from ecgfounder_train.models import Net1D
from ecgfounder_train.models.accounting import forward_flops
from ecgfounder_train.settings.training import TrainerSettings
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.build import DataOrder, create_datamodule, create_module
from ecgfounder_train.training.callback import RunCallback
from ecgfounder_train.training.config import RunConfig
from ecgfounder_train.training.device_use import DeviceUse, known_peak_tflops
from ecgfounder_train.training.failures import GIVE_UP_S, FailureNote, propagate_failures
from ecgfounder_train.training.loggers import create_loggers
from ecgfounder_train.training.memory_limit import as_memory_error, is_out_of_memory
from ecgfounder_train.training.module import PretrainModule
from ecgfounder_train.training.run_state import RunMetadata, RunState
from ecgfounder_train.training.signals import StopRequest, stay_if_preempted, stop_on_signals
from ecgfounder_train.training.starts import (
    Start,
    begins_from_scratch,
    hold_run,
    plan_start,
    record_start,
)
from ecgfounder_train.training.trainer import create_trainer

log = get_logger(__name__)


def train(config: Mapping[str, Any]) -> int:
    """Train until the budget is spent or a signal comes; return the process's exit code.

    Args:
        config: The composed `configs/pretrain.yaml` as plain containers.

    Raises:
        UserError: If the configuration is invalid.
    """
    # First everything that can be wrong, then the first file.
    parsed = RunConfig.from_config(config)
    launch = parsed.require_launch()
    # From here on a rank may fail alone, as one whose node does not see the shards.
    with propagate_failures(parsed.run, launch) as note:
        shards = open_training_shards(parsed)
        require_split(shards, parsed.expect_split)
        torch.manual_seed(parsed.numbers.seed)
        order = DataOrder.of(shards, parsed.data, parsed.numbers.seed)
        module, metadata = create_module(parsed, shards, order)
        evaluate_with = command("evaluate", {"run": parsed.run.name}, config["paths"])
        return fit(parsed, shards, order, module, metadata, launch, note, evaluate_with)


def open_training_shards(config: RunConfig) -> ShardSet:
    """Return the shards to train on, checked as far as the reader depends on it."""
    data = config.data
    if data.reader == "webdataset":
        # Streamed shards need not be beside the manifest.
        return ShardSet.open(config.shards, check_files=data.stream is None)
    if data.on_bad_sample == "quarantine" and data.cache_dir is None and not is_url(config.shards):
        # A shard that was cut or lost meanwhile must not prevent a restart.
        return ShardSet.open(config.shards, check_files=False)
    return open_shards(config.shards, data.cache_dir, data.cache_bytes)


def require_split(shards: ShardSet, expected: str | None) -> None:
    """Raise unless the shards have the expected split.

    Args:
        shards: What would be trained on.
        expected: Name or fingerprint of a split; None takes any.

    Raises:
        UserError: Names both.
    """
    manifest = shards.manifest
    name, found = str(manifest.split.get("name")), manifest.fingerprints["split"]
    if expected is not None and expected not in (name, found):
        raise UserError(
            f"expect_split={expected}, but the shards in {shards.folder} were split by {name!r} "
            f"(fingerprint {found}). Choose the shards= of that split, or prepare them with it; "
            "expect_split=null trains on any."
        )


def fit(
    config: RunConfig,
    shards: ShardSet,
    order: DataOrder,
    module: PretrainModule,
    metadata: RunMetadata,
    launch: Launch,
    note: FailureNote,
    evaluate_with: str | None = None,
) -> int:
    """Train a module that was made from these settings, or resume; return the exit code.

    Args:
        config: The settings.
        shards: What is trained on.
        order: In which order.
        module: The network and its loss.
        metadata: What its checkpoints say beside the state.
        launch: Who this process is.
        note: Where a failure is noted; of `propagate_failures`, which surrounds this call.
        evaluate_with: Command that is named when the run is complete; None: nothing is left to do.

    Raises:
        UserError: If the configuration is invalid, or the run cannot be continued with it.
    """
    run = config.run
    datamodule = create_datamodule(config, shards, order, module.total_samples)
    with ExitStack() as stack:
        if is_rank_zero():
            wait_s = _wait_for_former_s(config.trainer)
            stack.enter_context(hold_run(run, config.overwrite, config.plain, wait_s))
            start = plan_start(run, config.resume, metadata, config.plain)
        else:
            start = _start_of_other_rank(config, metadata)
        if _is_complete(start, config, module):
            if is_rank_zero():
                _log_is_complete(run, evaluate_with)
            return 0
        notice = "Stopping at the end of this step; Ctrl-C again stops at once."
        stop = stack.enter_context(stop_on_signals(notice if is_rank_zero() else ""))
        if is_rank_zero():
            note.take_run()
            record_start(run, start, config.plain, metadata, config.resume)
            _announce(run, start, shards, module, config.trainer)
        callback = RunCallback(
            run,
            start=start,
            metadata=metadata,
            measure=config.measure(metadata.fingerprints["data"]),
            settings=config.checkpoint,
            log_every_steps=config.numbers.log_every_steps,
            patience=config.budget.patience,
            stop=stop,
            loggers=create_loggers(config.logger, run, metadata.config) if is_rank_zero() else [],
            device_use=_device_use(module, shards, config.trainer),
        )
        del start  # and with it the checkpoint's tensors
        trainer = create_trainer(
            config.trainer,
            callbacks=[callback],
            accumulate=config.accumulate,
            gradient_clip_norm=config.numbers.gradient_clip_norm,
            launch=launch,
            note=note,
        )
        try:
            trainer.fit(module, datamodule=datamodule)
        except SystemExit as error:
            # What Lightning makes of a second Ctrl-C.
            raise KeyboardInterrupt(
                "Run the same command again to continue from the last checkpoint."
            ) from error
        except Exception as error:
            if is_rank_zero():
                callback.note_failure(module)
            if is_out_of_memory(error):
                raise as_memory_error(error, module, config, shards) from error
            raise
        code = log_completion(run, callback, module, stop, config, evaluate_with)
        if callback.stopped_early:
            stay_if_preempted(stop)
    return code


def _start_of_other_rank(config: RunConfig, metadata: RunMetadata) -> Start:
    """Return what tells another rank than 0 whether the run is complete already.

    Which checkpoint is loaded is decided by rank 0; by then the files may have changed.
    """
    if config.resume.checkpoint == "none" or begins_from_scratch(
        config.run, config.resume, config.overwrite, config.plain
    ):
        return Start()
    return plan_start(config.run, config.resume, metadata, config.plain)


def _wait_for_former_s(settings: TrainerSettings) -> float:
    """Return how long this start waits for an earlier one of the same job to end.

    SLURM requeues a job whose node does not answer. If only the cable is cut, rank 0 continues
    there until it gives up waiting for the others, and must not write into a run that has moved on.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
        return 0.0
    return settings.ddp_timeout_s + 2 * GIVE_UP_S


def _is_complete(start: Start, config: RunConfig, module: PretrainModule) -> bool:
    if start.content is None or not start.is_own:
        return False
    state = RunState.restored(start.content, config.accumulate)
    if state.validation_pending:
        return False
    patience = config.budget.patience
    measured = state.measure in (None, config.measure(start.content["fingerprints"]["data"]))
    return bool(start.content["position"]["samples_seen"] >= module.total_samples) or (
        patience is not None and measured and state.validations_since_best >= patience
    )


def _log_is_complete(run: RunDirectory, evaluate_with: str | None) -> None:
    hint = f" Evaluate it ({evaluate_with}) or raise" if evaluate_with else " Raise"
    print(
        f"Run {run.name} is complete.{hint} budget.max_epochs (or budget.patience) to train on.",
        flush=True,
    )


def _device_use(module: PretrainModule, shards: ShardSet, settings: TrainerSettings) -> DeviceUse:
    network = module.model
    flops = 0
    if isinstance(network, Net1D):
        # Forward, and twice that backward.
        seen = module.transform.training_samples(shards.manifest.num_samples)
        flops = 3 * forward_flops(network.config, seen)
    return DeviceUse(
        flops,
        settings.peak_tflops or known_peak_tflops(settings.on_gpu, str(settings.precision)),
        settings.world_size,
        settings.on_gpu,
    )


def _announce(
    run: RunDirectory,
    start: Start,
    shards: ShardSet,
    module: PretrainModule,
    settings: TrainerSettings,
) -> None:
    log.info(
        "Run %s: %s parameters, %d labels, %s training samples, budget %s samples, %d rank(s) on "
        "%s, precision %s.",
        run.name,
        f"{sum(p.numel() for p in module.model.parameters()):,}",
        len(shards.manifest.labels),
        f"{module.num_samples:,}",
        f"{module.total_samples:,}",
        settings.world_size,
        "GPU" if settings.on_gpu else "CPU",
        settings.precision,
    )
    for key, (before, now) in start.changed.items():
        log.info("Changed since the checkpoint: %s=%s, now %s.", key, before, now)
    if module.probe is not None:
        log.info("%s", module.probe)


def log_completion(
    run: RunDirectory,
    callback: RunCallback,
    module: PretrainModule,
    stop: StopRequest,
    config: RunConfig,
    evaluate_with: str | None,
) -> int:
    """Report how training ended, once for all ranks; return the exit code."""
    if not is_rank_zero():
        return stop.exit_code if callback.stopped_early else 0
    if callback.stopped_early:
        again = "Run the same command again"
        if config.resume.checkpoint == "none":
            again = "Run the same command with resume=auto"
        log.info(
            "Stopped at %s of %s samples; everything up to here is saved. %s to continue.",
            f"{module.samples_seen:,}",
            f"{module.total_samples:,}",
            again,
        )
        return stop.exit_code
    if left_out := module.state.faults.summary():
        log.info("%s", left_out)
    best = module.state.best
    value = "none" if best.value is None else f"{best.value:.4f}"
    print(
        f"Run {run.name} is complete: {module.samples_seen:,} samples, best "
        f"{config.checkpoint.monitor} {value} at {best.samples_seen:,} samples."
        + (f" Next: {evaluate_with}" if evaluate_with else ""),
        flush=True,
    )
    return 0

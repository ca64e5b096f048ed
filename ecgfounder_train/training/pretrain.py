"""Run or resume one pretraining run: the config in, an exit code out."""

import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from ecgfounder_train.core.commands import command
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.core.ranks import is_rank_zero, require_launch
from ecgfounder_train.core.run_directory import COMMAND_MARK, RunDirectory
from ecgfounder_train.labels.groups import in_group
from ecgfounder_train.loader.cache import is_url, open_shards
from ecgfounder_train.loader.datamodule import PretrainDataModule
from ecgfounder_train.loader.epoch_plan import EpochPlan
from ecgfounder_train.loader.order import create_plan
from ecgfounder_train.loader.patients import IntArray, patient_rows
from ecgfounder_train.loader.rows import Rows, SplitRows
from ecgfounder_train.loader.stream import StreamSource
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import Net1D, create_model
from ecgfounder_train.models.accounting import forward_flops
from ecgfounder_train.models.families import resolve_model
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.settings.training import (
    Augmentation,
    Budget,
    CheckpointSettings,
    DataSettings,
    EmaSettings,
    FaultSettings,
    OptimizerSettings,
    RunSettings,
    TrainerSettings,
)
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.device_use import DeviceUse, known_peak_tflops
from ecgfounder_train.training.ema import WeightAverage
from ecgfounder_train.training.failures import GIVE_UP_S, told_to_all
from ecgfounder_train.training.keeper import (
    Patience,
    RunFacts,
    RunKeeper,
    require_same,
)
from ecgfounder_train.training.loggers import create_loggers, logger_kind
from ecgfounder_train.training.module import PretrainModule
from ecgfounder_train.training.probe import ExternalProbe
from ecgfounder_train.training.schedules import create_schedule
from ecgfounder_train.training.signals import StopRequest, stay_if_preempted, stop_on_signals
from ecgfounder_train.training.split_weights import create_split_loss
from ecgfounder_train.training.trainer import create_trainer, hardware, on_this_machine, versions
from ecgfounder_train.weights.checkpoint import load_checkpoint, newest_whole

KEYS_WITH_PATHS = ("paths", "shards", "resume", "hydra")
"""Config keys that hold paths; they stay in the run directory's config.yaml."""


def train(config: Mapping[str, Any]) -> int:
    """Train until the budget is spent or a signal comes; return the process's exit code.

    Args:
        config: The composed `configs/pretrain.yaml` as plain containers.

    Raises:
        UserError: Whatever the user can mend.
    """
    run = RunDirectory.of(config["paths"]["runs"], config["run"])
    # First everything that can be wrong, then the first file.
    RunSettings.from_config(config)
    settings = on_this_machine(TrainerSettings.from_config(config["trainer"]))
    require_launch(settings.devices, settings.num_nodes)
    data = DataSettings.from_config(config["data"])
    data.per_rank(settings.world_size)
    # From here on a rank may fail alone, as one whose node does not see the shards.
    with told_to_all(run, settings.world_size) if settings.world_size > 1 else nullcontext():
        return _train(config, run, settings, data)


def _train(
    config: Mapping[str, Any], run: RunDirectory, settings: TrainerSettings, data: DataSettings
) -> int:
    if data.reader == "webdataset":
        # What is streamed need not lie beside the manifest.
        shards = ShardSet.open(config["shards"], check_files=data.stream is None)
    elif (
        data.on_bad_sample == "quarantine"
        and data.cache_dir is None
        and not is_url(config["shards"])
    ):
        # What was cut or lost under way must not keep the run from being started again.
        shards = ShardSet.open(config["shards"], check_files=False)
    else:
        shards = open_shards(config["shards"], data.cache_dir, data.cache_bytes)
    require_split(shards, config.get("expect_split"))
    torch.manual_seed(config["seed"])
    module, facts = create_module(config, shards, settings)
    return fit(
        config,
        run,
        shards,
        module,
        facts,
        settings,
        command("evaluate", {"run": run.name}, config["paths"]),
    )


def require_split(shards: ShardSet, expected: str | None) -> None:
    """Raise unless the shards have the split that was asked for.

    Args:
        shards: What would be trained on.
        expected: Name or fingerprint of a split; None takes any.

    Raises:
        UserError: Names both.
    """
    manifest = shards.manifest
    name, found = str(manifest.split.get("name")), manifest.fingerprints["split"]
    if expected is not None and str(expected) not in (name, found):
        raise UserError(
            f"expect_split={expected}, but the shards in {shards.folder} were split by {name!r} "
            f"(fingerprint {found}). Choose the shards= of that split, or prepare them with it; "
            "expect_split=null trains on any."
        )


def fit(
    config: Mapping[str, Any],
    run: RunDirectory,
    shards: ShardSet,
    module: PretrainModule,
    facts: RunFacts,
    settings: TrainerSettings,
    evaluate_with: str | None = None,
) -> int:
    """Train a module that was made from these settings, or go on; return the exit code.

    Args:
        config: As of `configs/pretrain.yaml`; other keys are left alone.
        run: Where it happens.
        shards: What is trained on.
        module: The network and its loss.
        facts: What its checkpoints will say beside the weights.
        settings: Where and how training runs.
        evaluate_with: Command that is named when the run is complete; None: nothing is to be done.

    Raises:
        UserError: Whatever the user can mend.
    """
    numbers = RunSettings.from_config(config)
    data = DataSettings.from_config(config["data"])
    checkpointing = CheckpointSettings.from_config(config["checkpoint"])
    per_rank = data.per_rank(settings.world_size)
    if module.transform.augmentation.mixup and per_rank % 2:
        raise UserError(
            f"augmentation.mixup mixes pairs, but each rank holds {per_rank} samples. Choose an "
            "even data.batch_size_per_rank (and data.global_batch_size), or augmentation.mixup=0."
        )
    logger_kind(config["logger"])
    module.faults = FaultSettings.from_config(config.get("faults", {}))
    datamodule = create_datamodule(config, shards, module, facts, settings)
    patience = Patience(
        Budget.from_config(config["budget"]).patience, datamodule.validate_every_samples
    )
    with ExitStack() as stack:
        if is_rank_zero():
            stack.enter_context(run.locked(_wait_for_former_s(settings)))
            _check_resume(run, config["resume"]["checkpoint"], facts)
            with atomic_file(run.config_file, "w") as handle:
                if Path(sys.argv[0]).stem in ("pretrain", "finetune"):
                    script = f"scripts/{Path(sys.argv[0]).name}"
                    command = shlex.join(["python", script, *sys.argv[1:]])
                    handle.write(f"{COMMAND_MARK}{command}\n")
                handle.write(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
            _announce(run, shards, module, settings)
        stop = stack.enter_context(stop_on_signals())
        loggers = create_loggers(config["logger"], run, facts.config) if is_rank_zero() else []
        keeper = RunKeeper(
            run,
            resume=config["resume"]["checkpoint"],
            facts=facts,
            settings=checkpointing,
            log_every_steps=numbers.log_every_steps,
            patience=patience,
            stop=stop,
            loggers=loggers,
            device_use=_device_use(module, shards, settings),
        )
        trainer = create_trainer(
            settings,
            callbacks=[keeper],
            accumulate=data.global_batch_size // (per_rank * settings.world_size),
            gradient_clip_norm=numbers.gradient_clip_norm,
            run=run,
        )
        if _is_complete(run, module, config["resume"]["checkpoint"], patience):
            hint = f" Evaluate it ({evaluate_with}) or raise" if evaluate_with else " Raise"
            print(
                f"Run {run.name} is complete.{hint} budget.max_epochs (or budget.patience) to "
                "train on."
            )
            return 0
        try:
            with told_to_all(run, settings.world_size):
                trainer.fit(module, datamodule=datamodule)
        except SystemExit as error:
            # What Lightning makes of a second Ctrl-C.
            raise KeyboardInterrupt(
                "Run the same command again to go on from the last checkpoint."
            ) from error
        except Exception:
            if is_rank_zero():
                keeper.note_failure(module)
            raise
        code = _farewell(run, keeper, module, stop, evaluate_with)
        if keeper.stopped_early:
            stay_if_preempted(stop)
    return code


def _wait_for_former_s(settings: TrainerSettings) -> float:
    """Return how long this start waits for an earlier one of the same job to end.

    SLURM requeues a job whose node it no longer hears. If only the cable is cut, rank 0 goes on
    there until it gives up waiting for the others, and must not write into a run that has moved on.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) == 0:
        return 0.0
    return settings.ddp_timeout_s + 2 * GIVE_UP_S


def create_datamodule(
    config: Mapping[str, Any],
    shards: ShardSet,
    module: PretrainModule,
    facts: RunFacts,
    settings: TrainerSettings,
) -> PretrainDataModule:
    """Return the data of a run; the order of them goes into its module and facts too.

    Args:
        config: As of `configs/pretrain.yaml`; other keys are left alone.
        shards: What is trained on.
        module: Learns how many samples an epoch has.
        facts: Its fingerprints learn of an order that is not the plain one.
        settings: Ranks.
    """
    budget = Budget.from_config(config["budget"])
    data = DataSettings.from_config(config["data"])
    rows, plan = _order(shards, data, RunSettings.from_config(config).seed)
    if plan.num_slots != module.num_samples:
        # With last_batch=drop an epoch is what of it is used.
        module.num_samples = plan.num_slots
        module.total_samples = budget.total_samples(plan.num_slots)
    facts.fingerprints |= _order_fingerprint(plan, data)
    return PretrainDataModule(
        shards,
        plan,
        rows,
        global_batch_size=data.global_batch_size,
        batch_size_per_rank=data.per_rank(settings.world_size),
        validate_every_samples=budget.validate_every(module.num_samples),
        total_samples=module.total_samples,
        checksum=data.checksum,
        on_bad_sample=data.on_bad_sample,
        num_workers=data.num_workers,
        stream=StreamSource(shards, data.stream) if data.reader == "webdataset" else None,
    )


def without_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config as checkpoints and loggers may hold it."""
    kept = {key: value for key, value in config.items() if key not in KEYS_WITH_PATHS}
    if "probe" in kept:
        kept["probe"] = dict(kept["probe"]) | {"shards": None}
    return kept | {"data": dict(config["data"]) | {"cache_dir": None, "stream": None}}


def create_module(
    config: Mapping[str, Any], shards: ShardSet, settings: TrainerSettings
) -> tuple[PretrainModule, RunFacts]:
    """Return the module for these shards, and the facts its checkpoints will carry."""
    manifest = shards.manifest
    data = DataSettings.from_config(config["data"])
    profile = SignalProfile.from_config(manifest.signal)
    transform = BatchTransform(
        manifest.leads,
        profile.load_normalisation,
        data.lead_choice,
        Augmentation.from_config(config["augmentation"]),
        config["seed"],
        profile.fs,
    )
    # Stored with the run as solved: consumers know nothing of families.
    model_config = resolve_model(config["model"], transform.num_leads, len(manifest.labels))
    spec = {
        "model": model_config,
        "num_leads": transform.num_leads,
        "lead_choice": data.lead_choice,
        "labels": list(manifest.labels),
        "vocabulary": dict(manifest.vocabulary),
        "signal": dict(manifest.signal),
    }
    name = str(model_config.pop("name"))
    # A matter of this machine: neither the checkpoint's consumers nor a resume depend on it.
    kernels = str(model_config.pop("kernels", "auto"))
    model = create_model(
        name, transform.num_leads, len(manifest.labels), kernels=kernels, **model_config
    )
    model.recompute = settings.recompute
    rows = _patient_rows(shards, data)
    loss = create_split_loss(config["loss"], shards, rows)
    half_life = EmaSettings.from_config(config["ema"]).half_life_samples
    num_samples = len(SplitRows.of(shards, "train") if rows is None else rows)
    facts = RunFacts(
        spec={**spec, "model": {"name": name, **model_config}},
        config=without_paths(config),
        fingerprints={
            "vocabulary": manifest.fingerprints["vocabulary"],
            "signal_profile": manifest.fingerprints["signal_profile"],
            "split": manifest.fingerprints["split"],
            "data": manifest.fingerprint,
            "model": fingerprint([name, model_config, transform.num_leads]),
            **_patients_fingerprint(data),
        },
        versions=versions(),
        hardware=hardware(settings),
    )
    module = PretrainModule(
        model,
        loss,
        transform,
        OptimizerSettings.from_config(config["optimizer"]),
        create_schedule(config["schedule"]),
        num_samples=num_samples,
        total_samples=Budget.from_config(config["budget"]).total_samples(num_samples),
        global_batch_size=data.global_batch_size,
        num_labels=len(manifest.labels),
        seed=config["seed"],
        average=WeightAverage(model, half_life) if half_life else None,
        monitored=in_group(
            manifest.vocabulary["groups"],
            config["budget"]["validate_group"],
            "budget.validate_group",
        )
        .nonzero()[0]
        .tolist(),
        probe=ExternalProbe.from_config(config, shards, settings.world_size),
    )
    return module, facts


def _patient_rows(shards: ShardSet, data: DataSettings) -> IntArray | None:
    if data.patient_fraction == 1.0:
        return None
    return patient_rows(shards, data.patient_fraction, data.patient_seed)


def _order(shards: ShardSet, data: DataSettings, seed: int) -> tuple[Rows, EpochPlan]:
    """Return the rows that are trained on, and in which order."""
    chosen = _patient_rows(shards, data)
    rows: Rows = SplitRows.of(shards, "train") if chosen is None else chosen
    plan = create_plan(
        shards,
        rows,
        seed,
        order=data.order,
        block_shards=data.block_shards,
        global_batch_size=data.global_batch_size,
        drop_last=data.last_batch == "drop",
    )
    return rows, plan


def _order_fingerprint(plan: EpochPlan, data: DataSettings) -> dict[str, str]:
    """Return what tells an order from another; nothing for the plain one."""
    name = "stream" if data.reader == "webdataset" else plan.name
    return {} if name == "global" else {"order": name}


def _patients_fingerprint(data: DataSettings) -> dict[str, str]:
    """Return what tells a share of the patients from another; nothing where all are taken."""
    if data.patient_fraction == 1.0:
        return {}
    return {"patients": fingerprint([data.patient_fraction, data.patient_seed])}


def _check_resume(run: RunDirectory, resume: str, facts: RunFacts) -> None:
    """Raise if the run cannot go on with these settings, before anything of it is replaced."""
    start = newest_whole(run) if resume in ("auto", "none") else Path(resume)
    if resume == "none" and start:
        raise UserError(
            f"Run {run.name!r} exists and resume=none would overwrite it. Choose another run=NAME, "
            f"resume=auto to go on, or delete {run.path}."
        )
    if start:
        require_same(load_checkpoint(start), facts, start)


def _is_complete(
    run: RunDirectory, module: PretrainModule, resume: str, patience: Patience
) -> bool:
    if resume != "auto" or (newest := newest_whole(run)) is None:
        return False
    checkpoint = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
    seen = checkpoint["position"]["samples_seen"]
    return bool(seen >= module.total_samples) or patience.is_exhausted(checkpoint["best"], seen)


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
    run: RunDirectory, shards: ShardSet, module: PretrainModule, settings: TrainerSettings
) -> None:
    parameters = sum(p.numel() for p in module.model.parameters())
    print(
        f"Run {run.name}: {parameters:,} parameters, {len(shards.manifest.labels)} labels, "
        f"{module.num_samples:,} training samples, budget {module.total_samples:,} samples, "
        f"{settings.world_size} rank(s) on {'GPU' if settings.on_gpu else 'CPU'}, "
        f"precision {settings.precision}.",
        flush=True,
    )
    if module.probe is not None:
        print(module.probe, flush=True)


def _farewell(
    run: RunDirectory,
    keeper: RunKeeper,
    module: PretrainModule,
    stop: StopRequest,
    evaluate_with: str | None,
) -> int:
    if not is_rank_zero():
        return stop.exit_code if keeper.stopped_early else 0
    if keeper.stopped_early:
        assert stop.signal is not None or module.trainer.world_size > 1
        print(
            f"Stopped at {module.samples_seen:,} of {module.total_samples:,} samples; everything "
            "up to here is saved. Run the same command again to go on.",
            flush=True,
        )
        return stop.exit_code
    if left_out := module.fault_counts.summary():
        print(left_out, flush=True)
    best = keeper.best
    value = "none" if best["value"] is None else f"{best['value']:.4f}"
    print(
        f"Run {run.name} is complete: {module.samples_seen:,} samples, best "
        f"{keeper.settings.monitor} {value} at {best['samples_seen']:,} samples."
        + (f" Next: {evaluate_with}" if evaluate_with else ""),
        flush=True,
    )
    return 0

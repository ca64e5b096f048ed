"""The Lightning Trainer with this project's strategy and launcher; versions and hardware."""

import os
import platform
import warnings
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import lightning as L
import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.logging import quieten_libraries
from ecgfounder_train.core.ranks import Launch
from ecgfounder_train.settings.training import TrainerSettings
from ecgfounder_train.training.failures import FailureNote, OwnRanksStrategy
from ecgfounder_train.training.launch import JobEnvironment


def on_this_machine(settings: TrainerSettings) -> TrainerSettings:
    """Return the settings with `auto` resolved: accelerator cpu or gpu, and a precision.

    Raises:
        UserError: There is no GPU, or fewer than ranks, or the precision needs one.
    """
    has_gpu = torch.cuda.is_available()
    if settings.accelerator == "gpu" and not has_gpu:
        raise UserError(
            "trainer.accelerator=gpu, but this torch sees no GPU. Check nvidia-smi and that "
            "the installed torch is a CUDA build, or use trainer=cpu."
        )
    accelerator = (
        ("gpu" if has_gpu else "cpu") if settings.accelerator == "auto" else (settings.accelerator)
    )
    if accelerator == "gpu":
        require_gpus(settings.devices, torch.cuda.device_count(), os.environ)
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if _has_bfloat16(accelerator == "gpu") else "32"
    return replace(settings, accelerator=accelerator, precision=precision)


def require_gpus(devices: int, visible: int, environment: Mapping[str, str]) -> None:
    """Raise unless each of a node's ranks has a GPU of its own.

    SLURM shows a task all GPUs of its node (`--gres`, `--gpus-per-node`), or with
    `--gpus-per-task=1` its own alone, which is number 0 in every one of them.

    Args:
        devices: Ranks per node.
        visible: GPUs that this process sees.
        environment: Variables of this process, as the batch system sets them.

    Raises:
        UserError: There are fewer GPUs than ranks, or a task sees some of them.
    """
    if devices <= visible:
        return
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    on_node = int(environment.get("SLURM_GPUS_ON_NODE") or visible) if tasks > 1 else visible
    if on_node < devices:
        raise UserError(f"trainer.devices={devices}, but this machine has {on_node} GPUs.")
    if visible != 1:
        raise UserError(
            f"This task sees {visible} of the {on_node} GPUs of its node: which of them are its "
            "own is not known. Ask srun for --gpus-per-task=1, or for --gres=gpu:N without "
            "--gpu-bind."
        )


def _has_bfloat16(on_gpu: bool) -> bool:
    if on_gpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def create_trainer(
    settings: TrainerSettings,
    *,
    callbacks: list[L.Callback],
    accumulate: int,
    gradient_clip_norm: float | None,
    launch: Launch,
    note: FailureNote,
) -> L.Trainer:
    """Return a Trainer that leaves progress, logging and checkpoints to our callbacks."""
    quieten_libraries()
    # Weights of 1x1 convolutions have ambiguous strides; the copy DDP makes of them is negligible.
    warnings.filterwarnings("ignore", message="Grad strides do not match")
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    strategy: Any = "auto"
    if settings.world_size > 1:
        strategy = OwnRanksStrategy(
            note,
            settings.link_timeout_s,
            settings.devices,
            process_group_backend="nccl" if settings.on_gpu else "gloo",
            timeout=timedelta(seconds=settings.ddp_timeout_s),
            gradient_as_bucket_view=True,
            # Keeps DDP from sorting its buckets again after the first step of every start. Of more
            # than two ranks the order of a sum follows the place in the bucket, so the first step
            # after a restart would differ from the undisturbed run's in the last bit.
            find_unused_parameters=settings.deterministic or not settings.on_gpu,
        )
    return L.Trainer(
        accelerator="gpu" if settings.on_gpu else "cpu",
        # Fewer are seen where each task is shown its own; see `require_gpus`.
        devices=min(settings.devices, torch.cuda.device_count())
        if settings.on_gpu
        else settings.devices,
        num_nodes=settings.num_nodes,
        strategy=strategy,
        precision=settings.precision,  # type: ignore[arg-type]
        plugins=[JobEnvironment(launch)],
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=gradient_clip_norm,
        num_sanity_val_steps=0,
        # A new stretch of batches for every Lightning "epoch"; see `loader.datamodule`.
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        deterministic=settings.deterministic,
        # cudnn's search for the fastest kernel pays off at fixed shapes, which ours are.
        benchmark=settings.on_gpu and not settings.deterministic,
        default_root_dir=str(note.path.parent),
    )


def versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    names = ("torch", "lightning", "numpy", "scipy", "wfdb", "webdataset")
    found = {name: version(name) for name in names}
    found |= {"python": platform.python_version(), "ecgfounder_train": _own_version()}
    if torch.cuda.is_available():
        nccl = ".".join(str(number) for number in torch.cuda.nccl.version())
        found |= {"cuda": str(torch.version.cuda), "nccl": nccl}
        found["cudnn"] = str(torch.backends.cudnn.version())
    return found


def _own_version() -> str:
    from ecgfounder_train import __version__

    return __version__


def hardware(settings: TrainerSettings) -> dict[str, Any]:
    """Return device kind, ranks, precision and what else decides about bits; no host name."""
    device = torch.cuda.get_device_name() if settings.on_gpu else platform.machine() + " CPU"
    return {
        "device": device,
        "devices_per_node": settings.devices,
        "num_nodes": settings.num_nodes,
        "threads": torch.get_num_threads(),
        "precision": str(settings.precision),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": settings.deterministic,
        "cudnn_benchmark": settings.on_gpu and not settings.deterministic,
    }

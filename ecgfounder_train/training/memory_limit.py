"""Out of memory in training: which batch size would fit, found by trying.

Micro-batches are halved until a forward and a backward pass fits; the global batch stays, because
gradients are accumulated, so the smaller size changes no result but rounding.
"""

import errno
import gc

import torch

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.training.config import RunConfig
from ecgfounder_train.training.module import PretrainModule

_CPU_MESSAGES = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory is exhausted, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU_MESSAGES)


def as_memory_error(
    error: BaseException, module: PretrainModule, config: RunConfig, shards: ShardSet
) -> UserError:
    """Return an error that names the micro-batch that fits.

    Args:
        error: What was raised.
        module: The network; its gradients are dropped.
        config: Of the run.
        shards: Shape of its samples.
    """
    size = config.batch_size_per_rank
    module.zero_grad(set_to_none=True)
    # The traceback holds the activations of the step that failed.
    error.__traceback__ = None
    fitting = largest_fitting(module, config, shards.manifest.num_samples)
    advice = (
        f"data.batch_size_per_rank={fitting} fits (tried); gradients are then accumulated to the "
        "same data.global_batch_size. Run the same command with it to continue."
        if fitting
        else "Not even one sample fits: choose a smaller model=, or trainer.recompute=true."
    )
    reason = str(error).strip().splitlines()
    return UserError(
        f"Out of memory with data.batch_size_per_rank={size} "
        f"({reason[0][:160] if reason else type(error).__name__}). {advice}"
    )


def largest_fitting(module: PretrainModule, config: RunConfig, num_samples: int) -> int:
    """Return the largest micro-batch below the one that failed that fits; 0 if none does."""
    share = config.data.global_batch_size // config.trainer.world_size
    size = config.batch_size_per_rank
    seen = module.transform.training_samples(num_samples)
    device = module.trainer.strategy.root_device
    # Lightning moves the module away from a device when training has failed.
    module.model.to(device)
    while size > 1:
        size = max(number for number in range(1, size // 2 + 1) if share % number == 0)
        if config.augmentation.mixup and size % 2:
            return 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if _fits(module, torch.Size((size, module.transform.num_leads, seen)), device):
            return size
    return 0


def _fits(module: PretrainModule, shape: torch.Size, device: torch.device) -> bool:
    parameters = [p for p in module.model.parameters() if p.requires_grad]
    try:
        with module.trainer.precision_plugin.forward_context():
            signal = torch.zeros(shape, device=device)
            loss = module.model.train()(signal).float().square().mean()
        loss.backward()
        # Two moments of AdamW, which the first step allocates.
        moments = [torch.empty_like(p) for p in parameters for _ in range(2)]
        del moments
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        module.zero_grad(set_to_none=True)
    return True

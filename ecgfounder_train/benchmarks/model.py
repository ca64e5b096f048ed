"""Net1D: our network against a plain re-statement of the published one, and both against the floor.

The floor of a size is the sum over its layers of max(bytes / bandwidth, operations / rate), forward
and backward in bfloat16 with ideal fusion (`models.accounting.layer_costs`), from a bandwidth and a
matrix rate measured on this device in the same run. Reference and ours then take turns; the
reference counts with the best of its own settings.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecgfounder_train.benchmarks import Outcome
from ecgfounder_train.benchmarks._reference_net1d import ReferenceNet1D
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import create_model
from ecgfounder_train.models.accounting import forward_flops, layer_costs
from ecgfounder_train.models.net1d import MODEL_TABLE, Net1D, Net1DConfig

LARGEST_ERROR = {"fp32": 1e-3, "bf16": 0.1}
"""Largest relative error of logits and gradients against the reference in float32."""


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Args:
        models: Names of the model table.
        batch_sizes: ECGs per step.
        num_samples: Length of a signal.
        rounds: Steps of each variant, taken in turns; the median counts.
        device: auto, cpu or cuda.
        compiled: Also the reference under torch.compile; None: on a GPU only (a network takes over
            a minute to compile on two cores).
        seed: Of weights and signals.
    """

    models: tuple[str, ...] = ("net1d_31m", "net1d_3m_100hz")
    batch_sizes: tuple[int, ...] = (32,)
    num_samples: int = 5000
    rounds: int = 5
    device: str = "auto"
    compiled: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "batch_sizes", tuple(self.batch_sizes))
        for name in self.models:
            if name not in MODEL_TABLE:
                raise UserError(f"model.models: there is no model {name!r} in the table.")
        if self.rounds < 1 or self.num_samples < 1 or min(self.batch_sizes, default=0) < 1:
            raise UserError("model.rounds, model.num_samples and model.batch_sizes start at 1.")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"model.device={self.device!r} is none of auto, cpu, cuda.")


SMALL: dict[str, Any] = {
    "models": ("net1d_2m",),
    "batch_sizes": (16,),
    "num_samples": 2000,
    "rounds": 3,
}


@dataclass(frozen=True)
class Ceilings:
    """What the device reaches: bytes per second of a copy (read + written), matrix operations."""

    bytes_per_s: float
    flops_per_s: dict[str, float]


@dataclass(frozen=True)
class Variant:
    """A network and the settings it runs with."""

    name: str
    model: Callable[[Tensor], Tensor]
    module: nn.Module
    precision: str

    @property
    def is_reference(self) -> bool:
        """Whether it is the plain re-statement."""
        return self.name.startswith("reference")


def run(settings: Settings) -> Outcome:
    """Return the table of all variants, and as `ratio` best reference step / best step of ours.

    `ratio` is that of the first model at the largest batch.

    Raises:
        UserError: A setting is wrong, or a network's numbers are.
    """
    device = torch.device(_device(settings.device))
    ceilings = measure_ceilings(device)
    rates = ", ".join(f"{k} {v / 1e12:.3g}" for k, v in ceilings.flops_per_s.items())
    lines = [
        f"Device ceilings: {ceilings.bytes_per_s / 1e9:.4g} GB/s (copy, read + written), matrix "
        f"products {rates} TFLOP/s",
        "",
        "Floor per ECG (bf16, ideal fusion): forward and whole step",
    ]
    record: dict[str, Any] = {
        "device": str(device.type),
        "bandwidth_gb_s": round(ceilings.bytes_per_s / 1e9, 1),
        "tflop_s": {key: round(value / 1e12, 3) for key, value in ceilings.flops_per_s.items()},
    }
    for name in dict.fromkeys((*settings.models, *_published_sizes())):
        forward, step = floor_s(MODEL_TABLE[name], settings.num_samples, ceilings)
        flops = forward_flops(MODEL_TABLE[name], settings.num_samples)
        record[f"floor_us_{name}"] = round(step * 1e6, 2)
        lines.append(
            f"  {name:<16} {flops / 1e9:6.3f} GFLOP  {forward * 1e6:10.1f} us {step * 1e6:10.1f} us"
            f"  at most {1 / step:10,.0f} ECG/s"
        )
    for name in settings.models:
        _, floor_step = floor_s(MODEL_TABLE[name], settings.num_samples, ceilings)
        for batch_size in settings.batch_sizes:
            rows, measured = measure(name, batch_size, settings, device, floor_step)
            lines += ["", f"{name}, batch {batch_size}, {settings.num_samples} samples", *rows]
            key = f"{name}_b{batch_size}"
            record[key] = measured
            if name == settings.models[0] and batch_size == max(settings.batch_sizes):
                record["ratio"], record["ratio_fp32"] = measured["ratio"], measured["ratio_fp32"]
    return Outcome("\n".join(lines), record)


def measure_ceilings(device: torch.device) -> Ceilings:
    """Return the copy bandwidth and the rate of large matrix products, measured now."""
    large = device.type == "cuda"
    source = torch.ones((1 << 30 if large else 1 << 26) // 4, device=device)
    target = torch.empty_like(source)
    copy_s = _median_s(lambda: target.copy_(source), device, 7)
    size = 8192 if large else 1536
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.randn(size, size, device=device).to(dtype)
        right = torch.randn(size, size, device=device).to(dtype)
        rates[name] = 2 * size**3 / _median_s(lambda: left @ right, device, 5)  # noqa: B023
    return Ceilings(2 * source.numel() * 4 / copy_s, rates)


def floor_s(config: Net1DConfig, num_samples: int, ceilings: Ceilings) -> tuple[float, float]:
    """Return the least seconds per ECG of a forward pass and of a whole step in bfloat16."""
    forward = step = 0.0
    for cost in layer_costs(config, num_samples):
        arithmetic = cost.flops / ceilings.flops_per_s["bf16"]
        layer = max(arithmetic, 2 * cost.forward_values / ceilings.bytes_per_s)
        forward += layer
        step += layer + max(2 * arithmetic, 2 * cost.backward_values / ceilings.bytes_per_s)
    return forward, step


def measure(
    name: str, batch_size: int, settings: Settings, device: torch.device, floor_step: float
) -> tuple[list[str], dict[str, Any]]:
    """Return table rows and figures of one size at one batch size."""
    signal, targets = _batch(name, batch_size, settings, device)
    variants = _variants(name, settings, device)
    errors = check_numbers(variants, signal[:4], targets[:4])
    optimizers = {
        variant.name: torch.optim.AdamW(
            [p for p in variant.module.parameters() if p.requires_grad],
            1e-6,
            fused=device.type == "cuda" or None,
        )
        for variant in variants
    }
    forward: dict[str, list[float]] = {variant.name: [] for variant in variants}
    step: dict[str, list[float]] = {variant.name: [] for variant in variants}
    memory: dict[str, float] = {}
    for turn in range(settings.rounds + 1):
        for variant in variants:
            optimizer = optimizers[variant.name]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            whole_s = _timed(lambda: _step(variant, signal, targets, optimizer), device)  # noqa: B023
            forward_s = _timed(lambda: _forward(variant, signal), device)  # noqa: B023
            if turn:  # the first one warms up
                step[variant.name].append(whole_s)
                forward[variant.name].append(forward_s)
            if device.type == "cuda":
                memory[variant.name] = torch.cuda.max_memory_allocated() / 2**20
    for variant in variants:
        if device.type == "cpu":
            memory[variant.name] = _saved_mib(variant, signal, targets)
    steps = {key: statistics.median(values) for key, values in step.items()}
    best = {
        side: min(s for v, s in ((v, steps[v.name]) for v in variants) if v.is_reference == side)
        for side in (True, False)
    }
    memory_is = "peak memory" if device.type == "cuda" else "saved for backward"
    rows = [
        f"  {'':<26}{'forward':>12}{'step':>12}{'x floor':>9}{memory_is:>20}{'error':>10}",
    ]
    for variant in variants:
        key = variant.name
        rows.append(
            f"  {key:<26}{batch_size / statistics.median(forward[key]):>7,.1f} ECG/s"
            f"{batch_size / steps[key]:>6,.1f} ECG/s{steps[key] / batch_size / floor_step:>8.1f}"
            f"{memory[key]:>15,.0f} MiB{errors[key]:>11.1e}"
        )
    figures = {
        "ratio": round(best[True] / best[False], 3),
        "ratio_fp32": round(steps["reference fp32"] / steps["ours fp32"], 3),
        "ecg_per_s": {key: round(batch_size / value, 2) for key, value in steps.items()},
        "times_floor": round(best[False] / batch_size / floor_step, 2),
        "memory_mib": {key: round(value, 1) for key, value in memory.items()},
    }
    rows.append(
        f"  whole step, best against best: {figures['ratio']:.2f} times the reference; in float32 "
        f"eager against eager: {figures['ratio_fp32']:.2f} times"
    )
    return rows, figures


def check_numbers(variants: list[Variant], signal: Tensor, targets: Tensor) -> dict[str, float]:
    """Return each variant's largest relative error of logits and gradients against float32.

    Raises:
        UserError: One computes something else.
    """
    expected = _logits_and_gradient(variants[0], signal, targets)
    assert variants[0].name == "reference fp32"
    errors = {}
    for variant in variants:
        found = _logits_and_gradient(variant, signal, targets)
        errors[variant.name] = max(
            float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)
        )
        if not errors[variant.name] < LARGEST_ERROR[variant.precision]:
            raise UserError(
                f"{variant.name} computes something else than the reference in float32: relative "
                f"error {errors[variant.name]:.2g}. Its speed means nothing; please report this."
            )
    return errors


def _logits_and_gradient(variant: Variant, signal: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    variant.module.zero_grad()
    logits = _forward(variant, signal)
    _loss(logits, targets).backward()  # type: ignore[no-untyped-call]
    parameters = sorted(variant.module.named_parameters())
    gradient = torch.cat([p.grad.flatten() for _, p in parameters if p.grad is not None])
    return logits.detach().float(), gradient.clone()


def _variants(name: str, settings: Settings, device: torch.device) -> list[Variant]:
    torch.manual_seed(settings.seed)
    # Normalisation and dropout are options of ours, not part of the published function.
    ours: Net1D = create_model(name, norm="none").to(device)
    reference = ReferenceNet1D(ours.config).to(device)
    reference.load_state_dict(ours.state_dict())
    variants = [
        Variant("reference fp32", reference, reference, "fp32"),
        Variant("reference bf16", reference, reference, "bf16"),
        Variant("ours fp32", ours, ours, "fp32"),
        Variant("ours bf16", ours, ours, "bf16"),
    ]
    if settings.compiled or (settings.compiled is None and device.type == "cuda"):
        compiled = torch.compile(reference)
        variants.insert(2, Variant("reference bf16 compiled", compiled, reference, "bf16"))
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    return variants


def _batch(
    name: str, batch_size: int, settings: Settings, device: torch.device
) -> tuple[Tensor, Tensor]:
    config = MODEL_TABLE[name]
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (batch_size, config.num_leads, settings.num_samples)
    signal = torch.randn(shape, generator=generator)
    targets = torch.rand(batch_size, config.num_labels, generator=generator).round()
    return signal.to(device), targets.to(device)


def _forward(variant: Variant, signal: Tensor) -> Tensor:
    with torch.autocast(signal.device.type, torch.bfloat16, enabled=variant.precision == "bf16"):
        return variant.model(signal)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), targets)


def _step(
    variant: Variant, signal: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer
) -> None:
    loss = _loss(_forward(variant, signal), targets)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _saved_mib(variant: Variant, signal: Tensor, targets: Tensor) -> float:
    """Return what autograd keeps between forward and backward, each storage counted once."""
    storages: dict[int, int] = {}
    kept = {p.untyped_storage().data_ptr() for p in variant.module.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = _loss(_forward(variant, signal), targets)
    del loss
    return sum(storages.values()) / 2**20


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _median_s(work: Callable[[], Any], device: torch.device, rounds: int) -> float:
    work()
    return statistics.median(_timed(work, device) for _ in range(rounds))


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("model.device=cuda, but this torch sees no GPU.")
    return name


def _published_sizes() -> tuple[str, ...]:
    return ("net1d_12m", "net1d_26m", "net1d_31m", "net1d_76m", "net1d_110m")

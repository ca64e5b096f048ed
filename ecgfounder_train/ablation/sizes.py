"""What each network costs on this machine: parameters, FLOPs, memory and ECGs per second."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.nn import functional

from ecgfounder_train.ablation.plan import STEP_FORWARDS, Ablation, merged
from ecgfounder_train.app import compose_config
from ecgfounder_train.core.csv_files import write_frame
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import atomic_file
from ecgfounder_train.models import MODEL_TABLE, Net1D, Net1DConfig, forward_flops
from ecgfounder_train.models.accounting import activation_bytes
from ecgfounder_train.models.families import parameter_count, resolve_model
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.trained_model import choose_device

_DEFAULT = (12, 150, 5000)  # leads, labels and samples of the published network
_TIMED_STEPS = 2


@dataclass(frozen=True)
class Size:
    """One row of the table."""

    name: str
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    parameters: int
    forward_flops: int
    activation_bytes: int
    ecg_per_s: float

    @property
    def step_flops(self) -> int:
        """Training FLOPs per ECG."""
        return STEP_FORWARDS * self.forward_flops


def print_sizes(config: Mapping[str, Any]) -> int:
    """Measure the networks of `ablation.axes.model`, print a table and write it as CSV.

    With shards=DIR leads, labels and length are theirs, else those of the published network.
    """
    ablation = Ablation.from_config(config)
    choices = next((axis.choices for axis in ablation.axes if axis.name == "model"), ())
    if not choices:
        raise UserError(
            "table measures the networks of ablation.axes.model, but there is no such axis."
        )
    shape = _DEFAULT
    shards = ShardSet.open(config["shards"]) if config["shards"] is not None else None
    if shards is not None:
        manifest = shards.manifest
        shape = len(manifest.leads), len(manifest.labels), manifest.num_samples
    device = choose_device(config["device"])
    sizes = []
    for choice in choices:
        arguments = [a for a in ablation.overrides if not a.startswith("shards=")]
        composed = compose_config(
            "pretrain", merged([*arguments, *choice.arguments, "shards=none", "run=none"])
        )
        settings = resolve_model(dict(composed["model"]), shape[0], shape[1])
        sizes.append(measure(choice.label, _network(settings, shape), shape[2], device))
        print(f"{choice.label} measured", flush=True)
    path = Path(config["paths"]["ablations"]) / ablation.name / "sizes.csv"
    with atomic_file(path) as handle:
        write_frame(_frame(sizes), handle)
    print(_as_text(sizes, shape, device))
    print(f"Table: {path}")
    return 0


def measure(name: str, network: Net1DConfig, num_samples: int, device: torch.device) -> Size:
    """Return a network's row; the speed is that of training steps in bfloat16 on this machine."""
    model = Net1D(network).to(device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    batch = 64 if device.type == "cuda" else 8
    signal = torch.randn(batch, network.num_leads, num_samples, device=device)
    targets = torch.rand(batch, network.num_labels, device=device).round()
    memory = activation_bytes(model, signal[:4])

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(signal)
        loss = functional.binary_cross_entropy_with_logits(logits.float(), targets)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    step()  # the first one chooses kernels and makes the optimizer's state
    begun = time.perf_counter()
    for _ in range(_TIMED_STEPS):
        step()
    rate = batch * _TIMED_STEPS / (time.perf_counter() - begun)
    flops = forward_flops(network, num_samples)
    return Size(name, network.widths, network.depths, parameter_count(network), flops, memory, rate)


def _network(settings: Mapping[str, Any], shape: tuple[int, int, int]) -> Net1DConfig:
    fields = dict(settings)
    base = MODEL_TABLE[str(fields.pop("name"))]
    return replace(base, **{**fields, "num_leads": shape[0], "num_labels": shape[1]})


def _frame(sizes: Sequence[Size]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "name": size.name,
                "widths": " ".join(map(str, size.widths)),
                "depths": " ".join(map(str, size.depths)),
                "parameters": size.parameters,
                "forward_flops_per_ecg": size.forward_flops,
                "step_flops_per_ecg": size.step_flops,
                "activation_bytes_per_ecg": size.activation_bytes,
                "ecg_per_s": round(size.ecg_per_s, 2),
            }
            for size in sizes
        ]
    )


def _as_text(sizes: Sequence[Size], shape: tuple[int, int, int], device: torch.device) -> str:
    lines = [
        f"{shape[0]} leads, {shape[1]} labels, {shape[2]} samples; training steps in bfloat16 on "
        f"{device.type} with {torch.get_num_threads()} threads",
        f"{'network':<14}{'parameters':>13}{'GFLOP fwd':>11}{'GFLOP step':>12}{'MB / ECG':>10}"
        f"{'ECG/s':>9}  widths",
    ]
    lines += [
        f"{size.name:<14}{size.parameters:>13,}{size.forward_flops / 1e9:>11.3f}"
        f"{size.step_flops / 1e9:>12.3f}{size.activation_bytes / 1e6:>10.1f}"
        f"{size.ecg_per_s:>9.1f}  {list(size.widths)} x {list(size.depths)}"
        for size in sizes
    ]
    return "\n".join(lines)

"""How much of the device a run uses: columns of metrics.csv."""

from dataclasses import dataclass

import torch

_PEAK_TFLOPS = {
    "H100": 989.0,
    "H200": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A10": 125.0,
    "L4": 121.0,
}
"""Dense 16-bit matrix products by NVIDIA's data sheets; SXM where there are several."""


@dataclass(frozen=True)
class DeviceUse:
    """Device columns of metrics.csv: share of the peak rate, memory.

    Args:
        step_flops: Operations of one ECG's forward and backward pass.
        peak_tflops: Highest rate of one device; None where it is neither stated nor known.
        world_size: Devices.
        on_gpu: Whether to report GPU memory.
    """

    step_flops: int
    peak_tflops: float | None
    world_size: int
    on_gpu: bool

    def of(self, ecg_per_s: float) -> dict[str, float]:
        """Return the columns for a speed over all ranks; memory is the peak of rank 0."""
        columns = {}
        if self.peak_tflops:
            peak = self.peak_tflops * 1e12 * self.world_size
            columns["flop_utilisation"] = float(f"{self.step_flops * ecg_per_s / peak:.4g}")
        if self.on_gpu:
            columns["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
        return columns


def known_peak_tflops(on_gpu: bool, precision: str) -> float | None:
    """Return a GPU's data-sheet rate for 16-bit training; None where it is not known."""
    if not on_gpu or precision not in ("bf16-mixed", "16-mixed"):
        return None
    words = torch.cuda.get_device_name().replace("-", " ").split()
    return next((rate for name, rate in _PEAK_TFLOPS.items() if name in words), None)

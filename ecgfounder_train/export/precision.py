"""What storing weights in half precision does to the outputs, measured."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.evaluation.predict import predict_split
from ecgfounder_train.metrics import ranking_metrics
from ecgfounder_train.models import create_model
from ecgfounder_train.shards import ShardSet
from ecgfounder_train.weights.bundle import in_precision
from ecgfounder_train.weights.trained_model import TrainedModel

_SYNTHETIC_RECORDS = 32
_SEED = 0


@dataclass(frozen=True)
class PrecisionEffect:
    """Outputs of rounded weights against those of the weights they were rounded from.

    Attributes:
        precision: Of the stored weights; the network computes in float32.
        num_records: Inputs compared.
        data: Description of the data.
        max_logit_change: Largest change of any logit.
        max_probability_change: Largest change of any plain sigmoid.
        max_auroc_change: Largest change of any label's AUROC; None without labelled records.
    """

    precision: str
    num_records: int
    data: str
    max_logit_change: float
    max_probability_change: float
    max_auroc_change: float | None

    def summary(self) -> str:
        """Return one sentence."""
        auroc = (
            ""
            if self.max_auroc_change is None
            else f", AUROC of any label by at most {self.max_auroc_change:.1e}"
        )
        return (
            f"Stored as {self.precision}, over {self.num_records:,} {self.data}: logits change by "
            f"at most {self.max_logit_change:.1e}, probabilities by at most "
            f"{self.max_probability_change:.1e}{auroc}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return dict(vars(self))


def rounded(trained: TrainedModel, precision: str) -> TrainedModel:
    """Return the same model with weights as they come back from a file of that precision."""
    config = dict(trained.model_config)
    model = create_model(
        trained.model_name, trained.transform.num_leads, len(trained.labels), **config
    )
    stored = in_precision(trained.model.state_dict(), precision)
    model.load_state_dict(in_precision(stored, "float32"))
    device = next(trained.model.parameters()).device
    return replace(trained, model=model.eval().requires_grad_(False).to(device))


def measure_precision(
    trained: TrainedModel,
    precision: str,
    shards: ShardSet | None,
    device: torch.device,
    batch_size: int,
) -> PrecisionEffect:
    """Return the effect on the validation part of shards, else on synthetic signals.

    The synthetic signals are noise of an ECG's bandwidth: enough for the change of logits, but
    without labels, so that AUROC cannot be measured.

    Raises:
        UserError: The shards have no validation part or are of another model.
    """
    other = rounded(trained, precision)
    if shards is None:
        exact, changed = (_synthetic_logits(model, device) for model in (trained, other))
        data, areas = "synthetic signals", None
    else:
        if not len(shards.rows("val")):
            raise UserError(f"The shards in {shards.folder} have no validation part.")
        first, second = (
            predict_split(model, shards, "val", device, batch_size) for model in (trained, other)
        )
        exact, changed = first.logits, second.logits
        data = "windows of the validation part"
        arrays = first.targets, first.observed, first.labels
        areas = [ranking_metrics(logits, *arrays).auroc for logits in (exact, changed)]
    change = np.abs(exact - changed)
    chance = [1 / (1 + np.exp(-logits.astype(np.float64))) for logits in (exact, changed)]
    worst = None
    if areas is not None and np.isfinite(areas[0]).any():
        worst = float(np.nanmax(np.abs(areas[0] - areas[1])))
    return PrecisionEffect(
        precision,
        len(exact),
        data,
        float(change.max()),
        float(np.abs(chance[0] - chance[1]).max()),
        worst,
    )


def synthetic_signals(
    num_records: int, num_leads: int, num_samples: int, seed: int = _SEED
) -> NDArray[np.float32]:
    """Return smoothed noise of 0.2 mV, the same for the same arguments.

    Shape: (num_records, num_leads, num_samples) float32, millivolts.
    """
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.2, (num_records, num_leads, num_samples + 4)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(noise, 5, axis=2)
    smooth: NDArray[np.float32] = windows.mean(-1, dtype=np.float32) * np.float32(5**0.5)
    return smooth


@torch.inference_mode()
def _synthetic_logits(trained: TrainedModel, device: torch.device) -> NDArray[np.float32]:
    num_leads = trained.transform.num_leads
    signals = synthetic_signals(_SYNTHETIC_RECORDS, num_leads, trained.profile.num_samples)
    parts = [
        # One standard deviation is what most profiles feed; `fixed` has its own unit.
        trained.model(torch.from_numpy(part / 0.2).to(device)).float().cpu().numpy()
        for part in np.array_split(signals, _SYNTHETIC_RECORDS // 8)
    ]
    return np.concatenate(parts)

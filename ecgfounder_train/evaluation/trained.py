"""A trained network together with all that its input and output mean."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import create_model
from ecgfounder_train.models.checkpoint import load_checkpoint
from ecgfounder_train.records import SignalProfile


@dataclass
class TrainedModel:
    """What a checkpoint holds, ready to be used.

    Attributes:
        model: The network in evaluation mode, with the averaged weights if the run kept any.
        labels: Names of the outputs in order.
        profile: The signal profile it was trained with.
        lead_choice: Which of the profile's leads it sees; lead I where it sees one.
        fingerprints: Vocabulary, signal profile, split and data it was trained with.
        samples_seen: How long it was trained.
    """

    model: nn.Module
    labels: tuple[str, ...]
    profile: SignalProfile
    lead_choice: str
    fingerprints: dict[str, str]
    samples_seen: int
    versions: dict[str, str] = field(default_factory=dict)
    model_name: str = ""
    vocabulary: str = ""

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "TrainedModel":
        """Return the trained model in a checkpoint of this project.

        Raises:
            UserError: The file is absent, damaged, or foreign.
        """
        checkpoint = load_checkpoint(path)
        spec = checkpoint["spec"]
        model_config: dict[str, Any] = dict(spec["model"])
        name = str(model_config.pop("name"))
        model = create_model(name, spec["num_leads"], len(spec["labels"]), **model_config)
        model.load_state_dict(checkpoint["ema"] or checkpoint["model"])
        return cls(
            model=model.eval().requires_grad_(False).to(device),
            labels=tuple(spec["labels"]),
            profile=SignalProfile.from_config(spec["signal"]),
            lead_choice=spec["lead_choice"],
            fingerprints=dict(checkpoint["fingerprints"]),
            samples_seen=checkpoint["position"]["samples_seen"],
            versions=dict(checkpoint["versions"]),
            model_name=name,
            vocabulary=str(spec["vocabulary"].get("name", "")),
        )

    def of_lead_i(self) -> "TrainedModel":
        """Return the same model fed with lead I alone, where that is all it looks at.

        A single-lead model trained from 12-lead shards evaluates on lead I; recordings that have
        no other lead need a profile that asks for no other.
        """
        if self.lead_choice == "all":
            return self
        profile = SignalProfile.from_config({**self.profile.to_dict(), "leads": ["I"]})
        return replace(self, profile=profile, lead_choice="lead_I")

    def with_windows(self, policy: str) -> "TrainedModel":
        """Return the same model that cuts longer records otherwise: consecutive, centre, first.

        Raises:
            UserError: There is no such policy.
        """
        config = self.profile.to_dict()
        windows = {**config["windows"], "policy": policy}
        return replace(self, profile=SignalProfile.from_config({**config, "windows": windows}))

    @property
    def transform(self) -> BatchTransform:
        """The load half of its preprocessing."""
        return BatchTransform(self.profile.leads, self.profile.load_normalisation, self.lead_choice)


def choose_device(name: str) -> torch.device:
    """Return the device that `device=auto|cpu|cuda` means.

    Raises:
        UserError: There is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise UserError(f"device={name!r} is unknown. Valid: auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but this torch sees no GPU. Use device=cpu.")
    return torch.device(name)

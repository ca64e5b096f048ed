"""Initial weights: of a run, an export, the official files, or random."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.core.fingerprints import fingerprint
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import Net1D, create_model
from ecgfounder_train.records import SignalProfile
from ecgfounder_train.settings.training import Augmentation
from ecgfounder_train.weights.checkpoint import resolve_checkpoint
from ecgfounder_train.weights.trained_model import UNSTATED_LICENCE, TrainedModel

HEAD_PREFIXES = ("dense.", "attention.")
INITS = ("pretrained", "random")


@dataclass(frozen=True)
class StartingPoint:
    """A network's architecture, input, and weights if there are any.

    Attributes:
        model: `name` in the size table and what differs from it.
        profile: The signal it takes.
        lead_choice: `all`, or `lead_I` of a network that sees one lead.
        state: Weights, None for fresh ones.
        identity: Changes with the weights.
        words: Where they come from, for reports; without a path.
        licence, provenance: Handed on to what is made of them.
    """

    model: dict[str, Any]
    profile: SignalProfile
    lead_choice: str
    state: Mapping[str, Tensor] | None
    identity: str
    words: str
    licence: str = UNSTATED_LICENCE
    provenance: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "StartingPoint":
        """Return what `checkpoint=`, `from_run=`, `init=`, `model=` and `signal=` mean.

        Raises:
            UserError: They contradict each other, or the checkpoint cannot be read.
        """
        init = config["init"]
        if init not in INITS:
            raise UserError(f"init={init!r} is unknown. Valid: {', '.join(INITS)}.")
        which = config["checkpoint"]
        if which in (None, "none"):
            return cls._fresh(config)
        if config.get("model") or config.get("signal"):
            raise UserError(
                "model= and signal= are for checkpoint=none; the checkpoint knows its own "
                "network and signal. Dropout and stochastic depth have keys of their own."
            )
        path = resolve_checkpoint(str(which), config["paths"]["runs"], config["from_run"])
        trained = TrainedModel.load(path)
        one_lead = trained.lead_choice != "all"
        if one_lead and not config["shards"]:
            # Records with lead I alone are enough.
            trained = trained.of_lead_i()
        random = init == "random"
        name = f"run {config['from_run']}" if config["from_run"] else path.name
        checksum = sha256_file(path) if path.is_file() else fingerprint(str(sorted(_sums(trained))))
        return cls(
            {"name": trained.model_name, **trained.model_config},
            trained.profile,
            "lead_I" if one_lead else "all",
            None if random else dict(trained.model.state_dict()),
            "random" if random else checksum,
            f"fresh weights, the network of {name}"
            if random
            else f"{name} ({trained.samples_seen:,} samples seen)"
            if trained.samples_seen
            else name,
            UNSTATED_LICENCE if random else trained.licence,
            {} if random else {**trained.provenance, "finetuned_from": checksum},
        )

    @classmethod
    def _fresh(cls, config: Mapping[str, Any]) -> "StartingPoint":
        if config["from_run"]:
            raise UserError("from_run= needs checkpoint=best or checkpoint=last.")
        if not config.get("model"):
            raise UserError(
                "checkpoint=none starts from fresh weights and needs model=NAME (and signal=NAME "
                "for a table). Or give checkpoint=PATH, or from_run=NAME checkpoint=best."
            )
        if config["shards"]:
            from ecgfounder_train.shards import read_manifest

            signal = read_manifest(config["shards"]).signal
        elif config.get("signal"):
            signal = config["signal"]
        else:
            raise UserError("checkpoint=none with a table needs signal=NAME: how to read records.")
        return cls(
            # Which kernels compute is a matter of the machine, not of the network.
            {key: value for key, value in config["model"].items() if key != "kernels"},
            SignalProfile.from_config(signal),
            "all",
            None,
            "random",
            "fresh weights",
        )

    def transform(self, augmentation: Augmentation | None = None, seed: int = 0) -> BatchTransform:
        """Return the load half of the preprocessing."""
        return BatchTransform(
            self.profile.leads,
            self.profile.load_normalisation,
            self.lead_choice,
            augmentation or Augmentation(),
            seed,
            self.profile.fs,
        )

    def network(self, num_labels: int, seed: int, **changes: Any) -> Net1D:
        """Return the network with a fresh head; everything fresh where there are no weights.

        Args:
            num_labels: Outputs.
            seed: Of fresh weights.
            changes: Fields of `Net1DConfig`, such as `drop_path`; None leaves the checkpoint's.
        """
        settings = {**self.model, **{k: v for k, v in changes.items() if v is not None}}
        name = str(settings.pop("name"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = create_model(name, self.transform().num_leads, num_labels, **settings)
        if self.state is not None:
            body = {k: v for k, v in self.state.items() if not k.startswith(HEAD_PREFIXES)}
            found = model.load_state_dict(body, strict=False)
            missing = [k for k in found.missing_keys if not k.startswith(HEAD_PREFIXES)]
            assert not missing and not found.unexpected_keys, (missing, found.unexpected_keys)
        return model


def _sums(trained: TrainedModel) -> list[tuple[str, float]]:
    return [(k, float(v.double().sum())) for k, v in trained.model.state_dict().items()]

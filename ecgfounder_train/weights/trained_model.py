"""Trained model: a network with its signal profile, labels and decisions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ecgfounder_train.core.config import stated_in
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.files import sha256_file
from ecgfounder_train.labels import Vocabulary
from ecgfounder_train.loader.transforms import BatchTransform
from ecgfounder_train.models import create_model
from ecgfounder_train.records import STANDARD_LEADS, SignalProfile
from ecgfounder_train.weights.bundle import (
    DESCRIPTION_FILE,
    check_description,
    describe,
    is_bundle,
    read_bundle,
)
from ecgfounder_train.weights.checkpoint import check_contents
from ecgfounder_train.weights.decisions import Decisions, decisions_file, read_decisions
from ecgfounder_train.weights.official import (
    DESCRIPTION_KEY,
    FIRST,
    HEAD,
    official_size,
    official_state,
    read_official,
)
from ecgfounder_train.weights.outputs import Output, parse_outputs
from ecgfounder_train.weights.state_dict import check_state, load_strict

OFFICIAL_LICENCE = (
    "MIT (code and weights of ECGFounder); its preprint arXiv 2410.04133 is under CC BY 4.0"
)
UNSTATED_LICENCE = "unstated: whoever trained these weights decides"
OFFICIAL_LABELS = "ecgfounder150"
OFFICIAL_SIGNAL: dict[str, Any] = stated_in("signal/official.yaml")
"""The signal profile of the released weights, configs/signal/official.yaml."""


@dataclass
class TrainedModel:
    """What a file of weights holds, ready to be used.

    Attributes:
        model: The network in evaluation mode, with the averaged weights if the run kept any.
        labels: Names of the outputs in order.
        profile: The signal profile it was trained with.
        lead_choice: Which of the profile's leads it sees; lead I where it sees one.
        fingerprints: Vocabulary, signal profile, split and data it was trained with.
        samples_seen: How long it was trained.
        versions: Of the libraries it was trained with.
        model_name: Name in the size table.
        model_config: What differs from the table.
        vocabulary: Name of the vocabulary.
        vocabulary_facts: The vocabulary's name, labels, groups, options and fingerprint.
        outputs: What each output is; all binary where a file says nothing.
        decisions: Thresholds and calibration kept beside the weights; `Decisions.suits` says for
            which pooling of windows they hold.
        licence: Of the weights.
        provenance: Where the weights come from, in plain containers.
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
    model_config: dict[str, Any] = field(default_factory=dict)
    vocabulary_facts: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[Output, ...] = ()
    decisions: Decisions | None = None
    licence: str = UNSTATED_LICENCE
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.outputs:
            self.outputs = tuple(Output(label) for label in self.labels)

    @classmethod
    def load(cls, path: Path | str, device: torch.device | str = "cpu") -> "TrainedModel":
        """Return the trained model in a file or folder, whichever kind of weights it is.

        * A run's checkpoint (`*.ckpt`). Its `spec` may hold `outputs`, `licence` and `provenance`,
          which fine-tuning writes.
        * The official form (`*.pth`): a dict with `state_dict`, or a bare state dict. Unless it was
          written by `scripts/export.py`: the 150 labels, profile `official`, 12 leads or lead I.
        * An export: a folder with `model.safetensors` and `ecg_model.json`, or one of the two.

        No code in any of them is ever run.

        Raises:
            UserError: The file is absent, damaged, or foreign.
        """
        path = Path(path)
        if not path.exists():
            raise UserError(f"There is no checkpoint {path}.")
        if is_bundle(path):
            bundle = read_bundle(path)
            where = f"{bundle.path.parent / DESCRIPTION_FILE}"
            loaded = _from_description(bundle.description, bundle.state, where)
        else:
            loaded = _from_torch_file(path)
        loaded.model.to(device)
        return loaded

    def describe(self) -> dict[str, Any]:
        """Return all but the weights in plain containers, as `ecg_model.json` has it."""
        return describe(
            model={"name": self.model_name, **self.model_config},
            num_leads=self.transform.num_leads,
            lead_choice=self.lead_choice,
            outputs=self.outputs,
            vocabulary=self.vocabulary_facts,
            signal=self.profile.to_dict(),
            decisions=self.decisions.to_dict() if self.decisions else None,
            licence=self.licence,
            provenance={
                **self.provenance,
                "samples_seen": self.samples_seen,
                "fingerprints": self.fingerprints,
                "versions": self.versions,
            },
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


def _from_torch_file(path: Path) -> TrainedModel:
    content = read_official(path)
    if "format_version" in content and "spec" in content:
        return _from_run(check_contents(content, path), path)
    state = official_state(content, path)
    if DESCRIPTION_KEY in content:
        check_description(content[DESCRIPTION_KEY], str(path))
        return _from_description(content[DESCRIPTION_KEY], state, str(path))
    return _from_official(content, state, path)


def _from_run(checkpoint: Mapping[str, Any], path: Path) -> TrainedModel:
    spec = checkpoint["spec"]
    config: dict[str, Any] = dict(spec["model"])
    labels = tuple(spec["labels"])
    checksum_file = decisions_file(path)
    return _build(
        checkpoint["ema"] or checkpoint["model"],
        f"The checkpoint {path}",
        labels=labels,
        profile=SignalProfile.from_config(spec["signal"]),
        num_leads=spec["num_leads"],
        lead_choice=spec["lead_choice"],
        fingerprints=dict(checkpoint["fingerprints"]),
        samples_seen=checkpoint["position"]["samples_seen"],
        versions=dict(checkpoint["versions"]),
        model_name=str(config.pop("name")),
        vocabulary=str(spec["vocabulary"].get("name", "")),
        model_config=config,
        vocabulary_facts=dict(spec["vocabulary"]),
        outputs=_outputs(spec.get("outputs"), labels, str(path)),
        decisions=read_decisions(checksum_file, sha256_file(path))
        if checksum_file.is_file()
        else None,
        licence=str(spec.get("licence") or UNSTATED_LICENCE),
        provenance={
            **dict(spec.get("provenance") or {}),
            "kind": "run",
            "global_step": checkpoint["position"]["global_step"],
        },
    )


def _from_official(content: Mapping[str, Any], state: dict[str, Any], path: Path) -> TrainedModel:
    vocabulary = Vocabulary.load(OFFICIAL_LABELS)
    num_leads, num_labels = state[FIRST].shape[1], len(state[HEAD])
    if num_labels != vocabulary.num_labels:
        raise UserError(
            f"{path} has {num_labels} outputs and does not say which; only the "
            f"{vocabulary.num_labels} of the released checkpoints are known without a name. "
            "If this project wrote it, export it again (scripts/export.py writes the names)."
        )
    if num_leads not in (1, len(STANDARD_LEADS)):
        raise UserError(f"{path} takes {num_leads} leads; the official networks take 12 or 1.")
    name, config = official_size(state)
    leads = STANDARD_LEADS if num_leads > 1 else ("I",)
    profile = SignalProfile.from_config({**OFFICIAL_SIGNAL, "leads": list(leads)})
    numbers = {
        key: float(content[key])
        for key in ("epoch", "step", "val_auroc")
        if isinstance(content.get(key), int | float)
    }
    return _build(
        state,
        str(path),
        labels=vocabulary.labels,
        profile=profile,
        num_leads=num_leads,
        lead_choice="all",
        fingerprints={
            "vocabulary": vocabulary.fingerprint,
            "signal_profile": profile.fingerprint,
        },
        samples_seen=0,  # the file says steps, not their size
        model_name=name,
        vocabulary=vocabulary.name,
        model_config=config,
        vocabulary_facts=vocabulary.to_dict(),
        outputs=(),
        decisions=None,
        licence=OFFICIAL_LICENCE,
        provenance={"kind": "official", "derived_from_official": True, "official": numbers},
    )


def _from_description(
    description: Mapping[str, Any], state: Mapping[str, Tensor], where: str
) -> TrainedModel:
    try:
        config: dict[str, Any] = dict(description["model"])
        facts: dict[str, Any] = dict(description["provenance"])
        outputs = parse_outputs(description["outputs"], where)
        labels = tuple(output.name for output in outputs)
        decisions = description["decisions"]
        values: dict[str, Any] = {
            "profile": SignalProfile.from_config(description["signal"]),
            "num_leads": int(description["num_leads"]),
            "lead_choice": str(description["lead_choice"]),
            "fingerprints": dict(facts.pop("fingerprints", {})),
            "samples_seen": int(facts.pop("samples_seen", 0)),
            "versions": dict(facts.pop("versions", {})),
            "model_name": str(config.pop("name")),
            "vocabulary_facts": dict(description["vocabulary"]),
            "licence": str(description["licence"]),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{where} is incomplete ({type(error).__name__}: {error}). Export the model again."
        ) from error
    stated = values["vocabulary_facts"].get("labels")
    binary = [output.name for output in outputs if output.kind == "binary"]
    if stated is not None and list(stated) not in (binary, list(labels)):
        raise UserError(
            f"{where} contradicts itself: its outputs are not the labels of its vocabulary "
            f"{values['vocabulary_facts'].get('name')!r} in their order."
        )
    fitted = (
        None
        if decisions is None
        else Decisions.from_dict(decisions, where, "Export the model again.")
    )
    if fitted is not None:
        names = fitted.calibration.labels
        fitted.calibration.check_labels(len(names), binary if len(names) < len(labels) else labels)
    return _build(
        state,
        where,
        labels=labels,
        vocabulary=str(values["vocabulary_facts"].get("name", "")),
        model_config=config,
        outputs=outputs,
        decisions=fitted,
        provenance=facts,
        **values,
    )


def _build(
    state: Mapping[str, Any],
    where: str,
    num_leads: int,
    model_name: str,
    model_config: dict[str, Any],
    labels: tuple[str, ...],
    **values: Any,
) -> TrainedModel:
    remedy = "The file is damaged, or was changed by hand."
    _check_size(state, where, num_leads, model_name, model_config, len(labels), remedy)
    model = create_model(model_name, num_leads, len(labels), **model_config)
    load_strict(model, state, where, model_name, remedy)
    trained = TrainedModel(
        model=model.eval().requires_grad_(False),
        labels=labels,
        model_name=model_name,
        model_config=model_config,
        **values,
    )
    if trained.transform.num_leads != num_leads:
        raise UserError(
            f"{where} contradicts itself: a network of {num_leads} leads, but lead_choice="
            f"{trained.lead_choice} of a profile with {len(trained.profile.leads)} leads."
        )
    return trained


def _check_size(
    state: Mapping[str, Any],
    where: str,
    num_leads: int,
    model_name: str,
    model_config: Mapping[str, Any],
    num_labels: int,
    remedy: str,
) -> None:
    """Compare the network a file describes with its tensors before any memory is taken for it.

    Raises:
        UserError: They differ, or the description is not one of a network.
    """
    depths = model_config.get("depths") or ()
    try:
        # A block has several tensors: more blocks than tensors cannot be stored.
        if sum(depths) > len(state):
            raise ValueError(f"{sum(depths):,} blocks, but {len(state):,} tensors")
        with torch.device("meta"):
            network = create_model(model_name, num_leads, num_labels, **model_config)
    except UserError as error:
        raise UserError(f"{where} does not describe a network: {error}") from error
    except Exception as error:  # values and types of a foreign file raise anything
        raise UserError(
            f"{where} does not describe a {model_name} ({type(error).__name__}: {error}). {remedy}"
        ) from error
    check_state(network, state, where, model_name, remedy)


def _outputs(items: Any, labels: tuple[str, ...], where: str) -> tuple[Output, ...]:
    if not items:
        return ()
    outputs = parse_outputs(items, where)
    if tuple(output.name for output in outputs) != labels:
        raise UserError(f"{where} contradicts itself: its outputs are not its labels.")
    return outputs

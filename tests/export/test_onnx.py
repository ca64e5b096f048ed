"""onnxruntime gives torch's numbers, preprocessing included, at any batch size and length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_set as tiny
import torch
from export_tools import exported
from numpy.typing import NDArray

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.core.run_directory import RunDirectory
from ecgfounder_train.export.onnx_graph import build_graph, statistics_place
from ecgfounder_train.metrics import Thresholds
from ecgfounder_train.metrics.calibration import Calibration, CalibrationCurveFit
from ecgfounder_train.models import create_model
from ecgfounder_train.records import EcgRecord, SignalProfile
from ecgfounder_train.weights.decisions import RULES, Decisions
from ecgfounder_train.weights.outputs import Output
from ecgfounder_train.weights.trained_model import TrainedModel

PROFILES = ("paper", "author", "official", "zscore", "millivolt")
TOLERANCE = 1e-4


def profile_of(name: str, **changes: Any) -> SignalProfile:
    """A profile of configs/signal at 100 Hz; `millivolt` is `zscore` with another load half."""
    if name == "millivolt":
        own = {"normalisation": {"kind": "fixed", "scale_mv": 0.25}}
        return tiny.profile("zscore", **(own | changes))
    return tiny.profile(name, **changes)


def trained_model(
    profile: SignalProfile, lead_choice: str = "all", num_labels: int = 4, **changes: Any
) -> TrainedModel:
    torch.manual_seed(1)
    config = {"widths": [16, 32, 32], "depths": [1, 2, 1], "base_filters": 8, **changes}
    num_leads = len(profile.leads) if lead_choice == "all" else 1
    model = create_model("net1d_1m", num_leads, num_labels, **config)
    for name, value in model.state_dict().items():
        if "running_mean" in name or ("bn" in name and "bias" in name):
            value.normal_(0, 0.3)
        elif "running_var" in name or ("bn" in name and "weight" in name):
            value.uniform_(0.5, 1.5)
        elif name == "attention.score.weight":
            value.normal_(0, 1)
    model.dense.weight.data.mul_(8)  # logits as far apart as a trained network's
    labels = tuple(f"label {number}" for number in range(num_labels))
    return TrainedModel(
        model.eval().requires_grad_(False), labels, profile, lead_choice, {}, 0,
        model_name="net1d_1m", model_config=config, vocabulary_facts={"name": "mine"},
    )  # fmt: skip


def session(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def windows_of(
    profile: SignalProfile, durations: tuple[float, ...], fs: float = 500.0
) -> dict[str, NDArray[Any]]:
    """The windows the profile makes of noisy recordings, as the loader has them."""
    parts: dict[str, list[Any]] = {}
    for number, duration in enumerate(durations):
        rng = np.random.default_rng(number)
        time = np.arange(int(duration * fs)) / fs
        signal = rng.normal(0, 0.1, (12, len(time))) + rng.normal(0, 0.8, (12, 1))
        signal += rng.uniform(0.3, 1.5, (12, 1)) * np.sin(2 * np.pi * 1.3 * time) ** 9
        names = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
        record = EcgRecord(signal.astype(np.float32), names, fs)
        for window in profile.apply(record).windows:
            for key in ("ecg", "stats", "valid_start", "valid_num_samples"):
                parts.setdefault(key, []).append(getattr(window, key))
    return {key: np.stack(values) for key, values in parts.items()}


def by_torch(trained: TrainedModel, arrays: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    batch = {key: torch.from_numpy(np.asarray(value)) for key, value in arrays.items()}
    nothing = torch.zeros(len(arrays["ecg"]), 0)
    signal, _, _ = trained.transform(batch | {"targets": nothing, "observed": nothing}, False)
    with torch.inference_mode():
        logits: NDArray[np.float32] = trained.model(signal).numpy()
    return logits


def fed(
    runtime: onnxruntime.InferenceSession, arrays: dict[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    feed = {
        "ecg": (arrays["ecg"] / 1000).astype(np.float32),
        "valid_start": arrays["valid_start"].astype(np.int64),
        "valid_num_samples": arrays["valid_num_samples"].astype(np.int64),
        "stats": arrays["stats"],
    }
    wanted = {item.name for item in runtime.get_inputs()}
    names = [item.name for item in runtime.get_outputs()]
    results = runtime.run(None, {key: value for key, value in feed.items() if key in wanted})
    return dict(zip(names, results, strict=True))


def lead_i_only(arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return arrays | {"ecg": arrays["ecg"][:, :1], "stats": arrays["stats"][:, :1]}


@pytest.mark.parametrize("lead_choice", ["all", "published"])
@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_gives_torchs_logits(name: str, lead_choice: str) -> None:
    profile = profile_of(name)
    trained = trained_model(profile, lead_choice)
    runtime = session(build_graph(trained))
    for durations in ((10.0,), (6.5, 10.0, 10.0), (7.0, 8.2, 10.0, 6.0, 10.0)):
        arrays = windows_of(profile, durations)
        expected = by_torch(trained, arrays)
        given = arrays if lead_choice == "all" else lead_i_only(arrays)
        found = fed(runtime, given)["logits"]
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 15, 333, 1000, 2501, 5000])
def test_any_length_and_batch_size_gives_torchs_logits(length: int) -> None:
    trained = trained_model(profile_of("millivolt"))
    runtime = session(build_graph(trained))
    for batch_size in (1, 2, 7):
        ecg = np.random.default_rng(length).integers(-900, 900, (batch_size, 12, length))
        arrays = {
            "ecg": ecg.astype(np.int16),
            "stats": np.ones((batch_size, 12, 2), np.float32),
            "valid_start": np.zeros(batch_size, np.int64),
            "valid_num_samples": np.full(batch_size, length),
        }
        found = fed(runtime, arrays)["logits"]
        np.testing.assert_allclose(found, by_torch(trained, arrays), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"norm": "batch"},
        {"pooling": "attention"},
        {"stage_strides": [1, 3, 4], "kernel_size": 7, "stem_stride": 5},
        {"group_width": 8, "dropout": 0.3, "drop_path": 0.2, "head_dropout": 0.5},
    ],
)
def test_every_option_of_the_network_is_written(changes: dict[str, Any]) -> None:
    profile = profile_of("zscore")
    trained = trained_model(profile, **changes)
    arrays = windows_of(profile, (9.0, 10.0))
    found = fed(session(build_graph(trained)), arrays)["logits"]
    np.testing.assert_allclose(found, by_torch(trained, arrays), atol=TOLERANCE, rtol=0)


def test_the_released_size_gives_torchs_logits() -> None:
    torch.manual_seed(2)
    profile = profile_of("official", fs=500.0)
    model = create_model("net1d_31m").eval()
    labels = tuple(f"label {number}" for number in range(150))
    trained = TrainedModel(model, labels, profile, "all", {}, 0, model_name="net1d_31m")
    arrays = windows_of(profile, (10.0,))
    found = fed(session(build_graph(trained)), arrays)["logits"]
    np.testing.assert_allclose(found, by_torch(trained, arrays), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("normalisation", "place"),
    [
        ({"kind": "per_lead"}, "inside"),
        ({"kind": "joint", "clip": 1.5}, "inside"),
        ({"kind": "none"}, "none"),
        ({"kind": "fixed", "scale_mv": 0.3}, "none"),
    ],
)
def test_every_normalisation_is_written(normalisation: dict[str, Any], place: str) -> None:
    profile = profile_of("paper", normalisation=normalisation)
    assert statistics_place(profile) == place
    trained = trained_model(profile)
    arrays = windows_of(profile, (6.0, 10.0))
    found = fed(session(build_graph(trained)), arrays)["logits"]
    np.testing.assert_allclose(found, by_torch(trained, arrays), atol=TOLERANCE, rtol=0)


def test_statistics_are_an_input_where_the_profile_takes_them_before_filtering() -> None:
    assert statistics_place(profile_of("author")) == "input"
    assert statistics_place(profile_of("paper")) == "inside"
    assert statistics_place(profile_of("paper"), "input") == "input"
    longer = windows_of(profile_of("zscore"), (23.0,))  # statistics of the whole record
    trained = trained_model(profile_of("zscore"))
    found = fed(session(build_graph(trained, statistics="input")), longer)["logits"]
    np.testing.assert_allclose(found, by_torch(trained, longer), atol=TOLERANCE, rtol=0)


def test_what_lies_in_the_padding_does_not_matter() -> None:
    profile = profile_of("paper")
    runtime = session(build_graph(trained_model(profile)))
    arrays = windows_of(profile, (6.0, 7.0))
    clean = fed(runtime, arrays)["logits"]
    arrays["ecg"] = arrays["ecg"].copy()
    arrays["ecg"][:, :, 800:] = 5000
    np.testing.assert_array_equal(fed(runtime, arrays)["logits"], clean)


def calibrated(trained: TrainedModel) -> TrainedModel:
    curves = (
        CalibrationCurveFit("platt", 1.7, -0.4),
        CalibrationCurveFit(
            "isotonic", logits=(-2.0, -0.5, -0.25, 0.4, 2.5),
            probabilities=(0.01, 0.01, 0.3, 0.3, 0.95)),
        CalibrationCurveFit("none"),
        CalibrationCurveFit("isotonic", logits=(-1.0, 1.0), probabilities=(0.2, 0.9)),
    )  # fmt: skip
    thresholds = {
        name: Thresholds(trained.labels, rule, target, (0.0,) * 4, (None,) * 4)
        for name, (rule, target) in RULES.items()
    }
    trained.decisions = Decisions(
        thresholds, Calibration(trained.labels, curves), "", "pool=mean, crops=1, x", 9
    )
    return trained


def test_probabilities_are_the_calibrations_own() -> None:
    profile = profile_of("paper")
    trained = calibrated(trained_model(profile))
    runtime = session(build_graph(trained))
    arrays = windows_of(profile, (6.0, 7.0, 10.0, 10.0, 8.0, 9.0))
    found = fed(runtime, arrays)
    assert trained.decisions is not None
    expected = trained.decisions.calibration.apply(found["logits"])
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    assert len(np.unique(found["probabilities"][:, 1])) > 2


def test_without_calibration_there_are_no_probabilities() -> None:
    graph = build_graph(trained_model(profile_of("paper")))
    assert [item.name for item in graph.graph.output] == ["logits"]


def test_quantities_come_out_in_their_units() -> None:
    profile = profile_of("millivolt")
    trained = trained_model(profile, num_labels=3)
    age = Output("age", "regression", "years", 60.0, 15.0)
    trained.outputs = (Output("label 0"), age, Output("label 2"))
    found = fed(session(build_graph(trained)), windows_of(profile, (10.0, 7.0)))
    np.testing.assert_allclose(found["values"], found["logits"][:, 1:2] * 15 + 60, rtol=1e-6)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-4), ("bfloat16", 1e-4)])
def test_half_precision_weights_compute_as_their_rounded_values(
    precision: str, tolerance: float
) -> None:
    from ecgfounder_train.export.precision import rounded

    profile = profile_of("zscore")
    trained = trained_model(profile)
    full, half = build_graph(trained), build_graph(trained, precision)
    assert half.ByteSize() < 0.7 * full.ByteSize()
    arrays = windows_of(profile, (10.0, 7.0))
    expected = by_torch(rounded(trained, precision), arrays)
    np.testing.assert_allclose(
        fed(session(half), arrays)["logits"], expected, atol=tolerance, rtol=0
    )


def test_the_command_writes_a_graph_that_describes_itself(
    run: RunDirectory, tmp_path: Path
) -> None:
    done = exported(run, tmp_path / "out", "format=onnx")
    assert any("onnxruntime differs from torch" in note for note in done.notes)
    graph = onnx.load(done.folder / "model.onnx")
    description = json.loads({item.key: item.value for item in graph.metadata_props}["ecg_model"])
    trained = TrainedModel.load(run.checkpoints / "best.ckpt")
    assert [item["name"] for item in description["outputs"]] == list(trained.labels)
    assert description["signal"] == trained.profile.to_dict()
    assert [item.name for item in graph.graph.output] == ["logits", "probabilities"]
    text = (done.folder / "README.md").read_text()
    assert "`ecg`" in text and "12 leads" in text and "100 Hz" in text


def test_other_networks_are_refused() -> None:
    trained = trained_model(profile_of("paper"))
    trained.model = torch.nn.Linear(3, 4)
    with pytest.raises(UserError, match="not a Linear"):
        build_graph(trained)

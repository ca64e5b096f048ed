"""Net1D computes the published function under the published names."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ecgfounder_train.app import compose_config
from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import (
    MODEL_TABLE,
    Net1D,
    Net1DConfig,
    count_parameters,
    create_model,
    forward_flops,
    model_names,
)
from ecgfounder_train.models.accounting import layer_costs

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "model"
TINY = {"widths": (16, 48, 80), "depths": (2, 1, 2), "base_filters": 16, "num_labels": 7}


# The published formulas, restated on a state dict with nothing but matrix products.
def published_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    """A "same" convolution as a sum over kernel taps; groups follow from the weight's shape."""
    num_samples, (c_out, per_group, k) = x.shape[-1], weight.shape
    num_outputs = math.ceil(num_samples / stride)
    total = max(0, (num_outputs - 1) * stride + k - num_samples)
    padded = torch.zeros(*x.shape[:2], num_samples + total, dtype=x.dtype)
    padded[..., total // 2 : total // 2 + num_samples] = x
    groups = x.shape[1] // per_group
    w = weight.reshape(groups, c_out // groups, per_group, k)
    out = torch.zeros(len(x), c_out, num_outputs, dtype=x.dtype)
    for tap in range(k):
        taken = padded[..., tap : tap + (num_outputs - 1) * stride + 1 : stride]
        taken = taken.reshape(len(x), groups, per_group, num_outputs)
        out = out + torch.einsum("bgit,goi->bgot", taken, w[..., tap]).reshape(out.shape)
    return out + bias[:, None]


def published_batch_norm(x: Tensor, state: dict[str, Tensor], name: str, training: bool) -> Tensor:
    if training:
        mean, var = x.mean((0, 2)), x.var((0, 2), unbiased=False)
    else:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    x = (x - mean[:, None]) / torch.sqrt(var[:, None] + 1e-5)
    return x * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]


def published_net1d(
    state: dict[str, Tensor], x: Tensor, use_norm: bool = False, training: bool = False
) -> Tensor:
    def swish(v: Tensor) -> Tensor:
        return v * torch.sigmoid(v)

    def conv(v: Tensor, name: str, stride: int = 1) -> Tensor:
        return published_conv(v, state[f"{name}.conv.weight"], state[f"{name}.conv.bias"], stride)

    def norm(v: Tensor, name: str) -> Tensor:
        return published_batch_norm(v, state, name, training) if use_norm else v

    out = swish(norm(conv(x, "first_conv", 2), "first_bn"))
    stage = block = 0
    while True:
        name = f"stage_list.{stage}.block_list.{block}"
        if f"{name}.conv1.conv.weight" not in state:
            if block == 0:
                break
            stage, block = stage + 1, 0
            continue
        stride = 2 if block == 0 else 1
        shortcut = out
        if (stage, block) != (0, 0):
            out = swish(norm(out, f"{name}.bn1"))
        out = conv(out, f"{name}.conv1")
        out = conv(swish(norm(out, f"{name}.bn2")), f"{name}.conv2", stride)
        out = conv(swish(norm(out, f"{name}.bn3")), f"{name}.conv3")
        squeezed = out.mean(-1) @ state[f"{name}.se_fc1.weight"].T + state[f"{name}.se_fc1.bias"]
        gate = swish(squeezed) @ state[f"{name}.se_fc2.weight"].T + state[f"{name}.se_fc2.bias"]
        out = out * torch.sigmoid(gate)[..., None]
        if stride == 2:  # k - 1 = 1 zero at the end, then windows of two
            shortcut = torch.cat([shortcut, torch.zeros_like(shortcut[..., :1])], -1)
            pairs = shortcut.shape[-1] // 2
            shortcut = torch.maximum(
                shortcut[..., 0 : 2 * pairs : 2], shortcut[..., 1 : 2 * pairs : 2]
            )
        extra = out.shape[1] - shortcut.shape[1]
        padded = torch.zeros_like(out)
        padded[:, extra // 2 : extra // 2 + shortcut.shape[1]] = shortcut
        out = out + padded
        block += 1
    return out.mean(-1) @ state["dense.weight"].T + state["dense.bias"]


def randomised(model: Net1D) -> Net1D:
    """Give every bias, norm and running moment a value of its own, so that none can be ignored."""
    torch.manual_seed(1)
    for tensor in model.state_dict().values():
        if tensor.dtype.is_floating_point and tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) * 0.8 + 0.3)
    return model


def assert_close(ours: Tensor, published: Tensor) -> None:
    scale = published.abs().max().item() or 1.0
    assert (
        ours - published
    ).abs().max().item() <= 1e-5 * scale + 1e-9  # a bias before BatchNorm has none


def assert_same_function(model: Net1D, x: Tensor, use_norm: bool = False) -> None:
    x = x.clone().requires_grad_()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    state = {n: t.detach().clone() for n, t in model.state_dict().items()}
    for name in trained:
        state[name].requires_grad_()
    ours = model(x)
    published = published_net1d(state, x, use_norm, model.training)
    assert_close(ours, published)
    direction = torch.randn_like(published)
    ours_grads = torch.autograd.grad(ours, [x, *trained.values()], direction)
    published_grads = torch.autograd.grad(published, [x, *(state[n] for n in trained)], direction)
    for ours_grad, published_grad in zip(ours_grads, published_grads, strict=True):
        assert_close(ours_grad, published_grad)


@pytest.mark.parametrize("num_leads", [1, 12])
@pytest.mark.parametrize("num_samples", [1, 7, 250, 333, 1001])
def test_outputs_and_gradients_equal_the_published_formulas(
    num_leads: int, num_samples: int
) -> None:
    model = randomised(create_model("net1d_1m", num_leads=num_leads, **TINY))
    assert_same_function(model, torch.randn(2, num_leads, num_samples))


@pytest.mark.parametrize("training", [False, True])
def test_batch_norm_form_equals_the_published_formulas(training: bool) -> None:
    # float64: batch moments of few samples amplify rounding, which is not what is tested here.
    model = randomised(create_model("net1d_1m", norm="batch", **TINY)).double().train(training)
    assert_same_function(model, torch.randn(3, 12, 333).double(), use_norm=True)


def test_released_size_equals_the_published_formulas() -> None:
    model = create_model("net1d_31m").eval()
    x = torch.randn(1, 12, 601)
    with torch.no_grad():
        assert_close(model(x), published_net1d(model.state_dict(), x))


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("net1d_12m", 11_656_870),
        ("net1d_26m", 25_670_470),
        ("net1d_31m", 30_819_014),
        ("net1d_76m", 76_572_246),
        ("net1d_110m", 109_641_078),
    ],
)
def test_parameter_totals_are_the_documented_ones(name: str, total: int) -> None:
    with torch.device("meta"):
        assert count_parameters(create_model(name)).total == total


def test_released_size_has_the_released_state_dict() -> None:
    with torch.device("meta"):
        model = create_model("net1d_31m")
    state = model.state_dict()
    assert len(state) == 509
    assert count_parameters(model).trainable == 30_752_646
    shapes = {
        "first_conv.conv.weight": (64, 12, 16),
        "first_bn.running_mean": (64,),
        "first_bn.num_batches_tracked": (),
        "stage_list.1.block_list.0.bn1.weight": (64,),
        "stage_list.1.block_list.0.bn3.running_var": (160,),
        "stage_list.3.block_list.0.conv1.conv.weight": (400, 160, 1),
        "stage_list.3.block_list.2.conv2.conv.weight": (400, 16, 16),
        "stage_list.6.block_list.3.conv3.conv.bias": (1024,),
        "stage_list.6.block_list.3.se_fc1.weight": (512, 1024),
        "dense.weight": (150, 1024),
    }
    for key, shape in shapes.items():
        assert tuple(state[key].shape) == shape, key


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_every_trainable_parameter_gets_a_gradient(norm: str) -> None:
    model = create_model("net1d_1m", norm=norm, drop_path=0.5, num_labels=3)
    model(torch.randn(2, 12, 300)).sum().backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert without == []
    assert len(frozen) == (122 if norm == "none" else 2)


def test_options_leave_the_state_dict_unchanged() -> None:
    plain = create_model("net1d_1m").state_dict()
    for options in (
        {"norm": "batch"},
        {"dropout": 0.5, "head_dropout": 0.5, "drop_path": 0.2},
        {"stage_strides": (1, 2, 2, 2, 2, 2, 2), "stem_stride": 1},
    ):
        other = create_model("net1d_1m", **options).state_dict()
        assert {n: t.shape for n, t in other.items()} == {n: t.shape for n, t in plain.items()}


def test_dropout_and_drop_path_act_in_training_alone() -> None:
    x = torch.randn(4, 12, 200)
    for option in ("dropout", "head_dropout", "drop_path"):
        model = create_model("net1d_1m", **{option: 0.5})
        assert not torch.equal(model(x), model(x)), option
        model.eval()
        plain = create_model("net1d_1m").eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model(x), plain(x)), option


def test_features_then_head_is_the_network() -> None:
    model = create_model("net1d_1m").eval()
    x = torch.randn(2, 12, 1000)
    sequence, pooled = model.forward_features(x)
    assert sequence.shape == (2, model.num_features, 4)
    assert pooled.shape == (2, model.num_features)
    assert torch.equal(model.forward_head(pooled), model(x))
    torch.testing.assert_close(sequence.mean(-1), pooled)


def test_reset_classifier_changes_the_head_alone() -> None:
    model = create_model("net1d_1m").double().eval()
    x = torch.randn(2, 12, 200).double()
    before = model.forward_features(x)[1]
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert model.num_labels == model.config.num_labels == 5
    assert torch.equal(model.forward_features(x)[1], before)


def test_bf16_autocast_gives_float32_logits_near_those_of_float32() -> None:
    model = create_model("net1d_1m").eval()
    x = torch.randn(4, 12, 500)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            coarse = model(x)
    assert coarse.dtype == torch.float32
    assert (coarse - exact).abs().max() < 0.05


def test_flops_agree_with_torchs_counter() -> None:
    for config in (
        Net1DConfig(**TINY),
        Net1DConfig(**TINY, stage_strides=(1, 2, 2), kernel_size=9, stem_stride=1),
    ):
        # Training on a CPU takes operators that torch's counter does not know.
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            Net1D(config)(torch.randn(1, 12, 333))
        assert forward_flops(config, 333) == counter.get_total_flops()
        head = 2 * config.widths[-1] * config.num_labels
        layers = layer_costs(config, 333)
        assert sum(cost.flops for cost in layers) + head == forward_flops(config, 333)
    released = forward_flops(MODEL_TABLE["net1d_31m"], 5000)
    assert released == pytest.approx(2.34e9, rel=0.01)


def test_every_size_has_a_config_file_that_builds_it() -> None:
    # net1d_family is solved for; see test_families.
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*model_names(), "net1d_family"}
    for name in model_names():
        config = compose_config("pretrain", ["shards=x", "run=x", f"model={name}"])
        settings = dict(config["model"])
        assert settings["name"] == name
        with torch.device("meta"):
            assert create_model(**settings).config == MODEL_TABLE[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "net1d_13m"}, "net1d_12m"),
        ({"drop_pat": 0.1}, "drop_path"),
        ({"norm": "layer"}, "model.norm='layer'"),
        ({"widths": (16, 40), "depths": (1, 1)}, "group_width=16"),
        ({"widths": (16, 32)}, "one entry per stage"),
        ({"widths": (64, 32), "depths": (1, 1)}, "must not shrink"),
        ({"widths": (), "depths": ()}, "one entry per stage"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"num_labels": 0}, "model.num_labels=0"),
        ({"stage_strides": (2, 0, 2, 2, 2, 2, 2)}, "model.stage_strides"),
    ],
)
def test_a_wrong_setting_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_model(**{"name": "net1d_1m", **arguments})


def test_signals_of_another_shape_are_refused() -> None:
    model = create_model("net1d_1m", num_leads=1)
    for shape in ((2, 12, 100), (2, 100)):
        with pytest.raises(ValueError, match="1 leads, samples"):
            model(torch.randn(shape))


DDP_STEP = """
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from ecgfounder_train.models import create_model
rank = int(sys.argv[2])
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
torch.manual_seed(0)
for norm in ("none", "batch"):
    model = DistributedDataParallel(create_model("net1d_1m", norm=norm, num_labels=3))
    for step in range(2):  # an unused parameter would raise in the second step
        model(torch.full((2, 12, 100), float(rank))).sum().backward()
    grad = model.module.dense.weight.grad
    both = [torch.zeros_like(grad) for _ in range(2)]
    dist.all_gather(both, grad)
    assert torch.equal(*both)
dist.destroy_process_group()
"""


@pytest.mark.multiprocess
def test_ddp_finds_no_unused_parameter(tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DDP_STEP, str(tmp_path / "rendezvous")]
    processes = [
        subprocess.Popen([*command, str(rank)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors

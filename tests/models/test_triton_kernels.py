"""Triton's kernels compute what torch computes: run by its interpreter, compiled for real GPUs.

The interpreter works with NumPy on a CPU and knows no bfloat16, so numbers are compared in float32
and float16 here (tests/conftest.py switches it on), and in bfloat16 on a GPU by the test that asks
for one.
"""

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import create_model
from ecgfounder_train.models.kernels import gated_shortcut, gpu, grouped_convolution, operations
from ecgfounder_train.models.net1d import same_padding

pytest.importorskip("triton", reason="Triton is not installed (it exists for Linux only)")

TINY = {"widths": (16, 48, 64), "depths": (2, 1, 1), "base_filters": 16, "num_labels": 7}


def channels_last(batch: int, channels: int, samples: int, dtype: torch.dtype) -> Tensor:
    signal = torch.randn(batch, samples, channels, dtype=torch.float64).to(dtype)
    return signal.transpose(1, 2).unsqueeze(2)


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


@pytest.mark.parametrize("swish", [False, True])
@pytest.mark.parametrize(
    ("channels", "samples", "stride", "taps"),
    [
        (16, 37, 1, 16),
        (48, 64, 2, 16),
        (32, 31, 2, 16),
        (32, 5, 1, 16),  # shorter than the kernel
        (16, 1, 2, 16),
        (32, 50, 3, 8),
        (16, 53, 5, 4),
        (48, 131, 1, 16),  # several tiles
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
def test_grouped_convolution_and_its_gradients_equal_float64(
    dtype: torch.dtype, tolerance: float, channels: int, samples: int, stride: int, taps: int,
    swish: bool,
) -> None:  # fmt: skip
    torch.manual_seed(0)
    leaves = (
        channels_last(2, channels, samples, dtype),
        (torch.randn(channels, 16, taps) / 16).to(dtype),
        torch.randn(channels).to(dtype),
    )
    exact = [leaf.double().requires_grad_() for leaf in leaves]
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    padding = same_padding(samples, taps, stride)
    found = grouped_convolution(*leaves, stride, padding, swish, kernels="triton")
    signal = F.silu(exact[0].squeeze(2)) if swish else exact[0].squeeze(2)
    expected = F.conv1d(F.pad(signal, padding), *exact[1:], stride, groups=channels // 16)
    expected = expected.unsqueeze(2)
    assert found.shape == expected.shape and found.dtype == dtype
    assert relative_error(found, expected) < tolerance
    upstream = channels_last(2, channels, found.shape[-1], dtype)
    gradients = torch.autograd.grad(found, leaves, upstream)
    references = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, reference in zip(gradients, references, strict=True):
        assert gradient.shape == reference.shape and gradient.dtype == dtype
        assert relative_error(gradient, reference) < tolerance


@pytest.mark.parametrize(
    ("channels_in", "channels", "samples", "stride"),
    [
        (16, 16, 20, 1),
        (16, 48, 33, 2),
        (32, 32, 40, 2),
        (16, 24, 31, 3),
        (70, 100, 70, 2),
        (16, 16, 30, 3),  # the last sample lies in no window
    ],
)
def test_gated_shortcut_and_its_gradients_equal_torchs(
    channels_in: int, channels: int, samples: int, stride: int
) -> None:
    torch.manual_seed(0)
    leaves = [
        channels_last(2, channels, -(-samples // stride), torch.float32).requires_grad_(),
        torch.rand(2, channels).requires_grad_(),
        channels_last(2, channels_in, samples, torch.float32).requires_grad_(),
    ]
    found = gated_shortcut(*leaves, stride, kernels="triton")
    expected = gated_shortcut(*leaves, stride, kernels="torch")
    torch.testing.assert_close(found, expected)
    upstream = torch.randn(found.shape)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
    )


def test_nan_of_the_input_is_not_lost_in_the_pooled_shortcut() -> None:
    x = channels_last(1, 16, 8, torch.float32)
    x[0, 3, 0, 5] = torch.nan
    out = gated_shortcut(torch.ones(1, 16, 1, 4), torch.ones(1, 16), x, 2, kernels="triton")
    assert out.isnan().nonzero().tolist() == [[0, 3, 0, 2]]


def test_network_with_tritons_kernels_equals_the_one_with_torchs() -> None:
    torch.manual_seed(0)
    plain = create_model("net1d_1m", kernels="torch", **TINY)
    fast = create_model("net1d_1m", kernels="triton", **TINY)
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(2, 12, 75)
    outputs = []
    for model in (plain, fast):
        logits = model(x)
        logits.square().sum().backward()
        outputs.append(logits.detach())
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-4)
    for (name, a), (_, b) in zip(fast.named_parameters(), plain.named_parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None and b.grad is not None:
            assert relative_error(a.grad, b.grad.double()) < 1e-4, name


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    gpu.can_run.cache_clear()
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        create_model("net1d_1m", kernels="triton", **TINY)(torch.randn(1, 12, 40))
    gpu.can_run.cache_clear()
    with pytest.raises(UserError, match=r"kernels='tritn' is unknown\. Did you mean 'triton'"):
        create_model("net1d_1m", kernels="tritn", **TINY)


def choice(
    monkeypatch: pytest.MonkeyPatch, ours: Any, torchs: Any, seconds: tuple[float, float]
) -> bool:
    """Let `auto` choose between two ways for a key of its own."""
    times = iter(seconds)
    monkeypatch.setattr(gpu, "_chosen", {})
    monkeypatch.setattr(gpu, "_seconds", lambda work: next(times))
    x = torch.randn(3, 4).requires_grad_()
    return operations._by_triton("auto", ("a layer",), True, [x], ours, torchs)


def test_auto_takes_the_faster_way_once_and_never_a_wrong_or_failing_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def double(x: Tensor) -> Tensor:
        return 2 * x

    def off(x: Tensor) -> Tensor:
        return 2.1 * x

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no such instruction")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choice(monkeypatch, double, double, (1.0, 2.0))
        assert not choice(monkeypatch, double, double, (2.0, 1.0))
        assert list(gpu._chosen.values()) == [False]
        torch.use_deterministic_algorithms(True)
        try:
            assert choice(monkeypatch, double, double, (2.0, 1.0))  # whatever the clock says
        finally:
            torch.use_deterministic_algorithms(False)
    with pytest.warns(UserWarning, match="off by 0.05"):
        assert not choice(monkeypatch, off, double, (1.0, 2.0))
    with pytest.warns(UserWarning, match="failed .RuntimeError."):
        assert not choice(monkeypatch, broken, double, (1.0, 2.0))


def test_a_trial_draws_nothing_and_leaves_no_gradient() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    x = channels_last(2, 16, 20, torch.float32).requires_grad_()
    torch.set_rng_state(before)
    weight = torch.ones(16, 16, 16).requires_grad_()
    key = ("trial", 1)

    def way(x: Tensor, weight: Tensor) -> Tensor:
        return grouped_convolution(x, weight, None, 1, (7, 8), True)

    assert operations._by_triton("auto", key, True, [x, weight], way, way) in (True, False)
    assert torch.equal(torch.get_rng_state(), before)
    assert x.grad is None and weight.grad is None


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ecgfounder_train.models.kernels import triton_kernels as kernels

CONSTANTS = {
    "grouped_forward": dict(
        TAPS=16, TAPS_AT_ONCE=4, WIDTH=16, BLOCK=64, HAS_BIAS=True, UPCAST=False),
    "grouped_input_gradient": dict(
        STRIDE=2, TAPS=16, TAPS_AT_ONCE=4, WIDTH=16, BLOCK=64, SWISH=True, UPCAST=False),
    "grouped_weight_gradient": dict(TAPS=16, WIDTH=16, BLOCK=64, UPCAST=False),
    "gated_shortcut_forward": dict(STRIDE=2, BLOCK_T=32, BLOCK_C=64),
    "gated_shortcut_backward": dict(STRIDE=2, BLOCK_T=32, BLOCK_C=32),
}
for name, constants in CONSTANTS.items():
    kernel = getattr(kernels, name)
    signature = {
        argument: "constexpr" if argument in constants
        else "*fp32" if argument == "part_ptr"
        else "*bf16" if argument.endswith("_ptr") else "i32"
        for argument in kernel.arg_names
    }
    values = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    built = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    uses = built.asm["ptx"].count("mma")
    print(name, len(built.asm["cubin"]), built.metadata.shared, uses)
"""


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_ampere_and_hopper_and_use_matrix_units(capability: int) -> None:
    if capability != 90 and os.environ.get("ECG_TEST_TIER") != "all":
        pytest.skip("Hopper stands for both in the quick tier")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(capability)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    built = [line.split() for line in done.stdout.splitlines()]
    assert len(built) == 5
    for name, num_bytes, shared_bytes, matrix_instructions in built:
        assert int(num_bytes) > 0
        assert int(shared_bytes) < 100_000  # two programs of it fit a multiprocessor
        assert ("grouped" in name) == (int(matrix_instructions) > 0), name


GPU_CHECK = """
import torch
from ecgfounder_train.models import create_model

torch.manual_seed(0)
exact = create_model("net1d_2m").double().cuda()
signal = torch.randn(8, 12, 1250, device="cuda")
expected = exact(signal.double())
expected.square().mean().backward()
reference = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
errors = {}
for kernels in ("torch", "triton"):
    model = create_model("net1d_2m", kernels=kernels).cuda()
    model.load_state_dict(exact.state_dict())
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(signal)
    logits.square().mean().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    errors[kernels] = float((found.double() - reference).norm() / reference.norm())
print(errors)
assert errors["triton"] < 1.5 * errors["torch"] < 0.1
"""


@pytest.mark.gpu
def test_bfloat16_network_on_a_gpu_is_as_near_to_float64_as_torchs() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", GPU_CHECK],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]

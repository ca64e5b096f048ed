"""The fast operations compute what plain PyTorch computes, gradients included."""

import itertools
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ecgfounder_train.benchmarks._reference_net1d import ReferenceNet1D
from ecgfounder_train.models import MODEL_TABLE, create_model
from ecgfounder_train.models.kernels import (
    Kernels,
    grouped_convolution,
    grouped_vector,
    pointwise,
    time_mean,
)
from ecgfounder_train.models.net1d import same_padding

SHAPES = [
    # channels, samples, stride, taps, channels per group
    (16, 37, 1, 16, 16),
    (48, 64, 2, 16, 16),
    (32, 31, 2, 16, 8),
    (24, 5, 1, 16, 8),  # shorter than the kernel
    (32, 1, 2, 16, 16),
    (32, 50, 3, 7, 16),
    (160, 313, 1, 16, 16),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 6e-3}


def channels_last(batch: int, channels: int, samples: int, dtype: torch.dtype) -> Tensor:
    signal = torch.randn(batch, samples, channels, dtype=torch.float64).to(dtype)
    return signal.transpose(1, 2).unsqueeze(2)


def plain_grouped(x: Tensor, weight: Tensor, bias: Tensor, stride: int, swish: bool) -> Tensor:
    signal = F.pad(x.squeeze(2), same_padding(x.shape[-1], weight.shape[-1], stride))
    signal = F.silu(signal) if swish else signal  # Swish of 0 is 0
    groups = weight.shape[0] // weight.shape[1]
    return F.conv1d(signal, weight, bias, stride, groups=groups).unsqueeze(2)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float(
        (found.detach().double() - expected.detach()).norm()
        / expected.detach().norm().clamp(min=1e-30)
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "swish", "kernels"),
    list(itertools.product(SHAPES, TOLERANCE, (False, True), ("auto", "torch"))),
    ids=str,
)
def test_grouped_convolution_and_its_gradients_equal_float64(
    shape: tuple[int, ...], dtype: torch.dtype, swish: bool, kernels: Kernels
) -> None:
    torch.manual_seed(0)
    channels, samples, stride, taps, width = shape
    x = channels_last(3, channels, samples, dtype)
    weight = (torch.randn(channels, width, taps) / 16).to(dtype)
    bias = torch.randn(channels).to(dtype)
    leaves = [v.clone().requires_grad_() for v in (x, weight, bias)]
    exact = [v.double().requires_grad_() for v in (x, weight, bias)]
    padding = same_padding(samples, taps, stride)
    found = grouped_convolution(*leaves, stride, padding, swish, kernels)
    expected = plain_grouped(*exact, stride, swish)
    assert found.shape == expected.shape and found.dtype == dtype
    assert relative_error(found, expected) < TOLERANCE[dtype]
    upstream = channels_last(3, channels, found.shape[-1], dtype)
    gradients = torch.autograd.grad(found, leaves, upstream)
    references = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, reference in zip(gradients, references, strict=True):
        assert gradient.dtype == dtype and gradient.shape == reference.shape
        assert relative_error(gradient, reference) < TOLERANCE[dtype]
    with torch.no_grad():
        torch.testing.assert_close(
            grouped_convolution(x, weight, bias, stride, padding, swish), found.detach()
        )


def test_vectors_of_every_group_count_equal_float64() -> None:
    generator = torch.Generator().manual_seed(2)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    counts = {width // 16 for config in MODEL_TABLE.values() for width in config.widths}
    for groups in sorted(counts):
        samples, stride, taps = draw(1, 300), draw(1, 4), draw(1, 18)
        # Any padding, and more records than one unit of work takes.
        padding = (draw(0, 20) + taps, draw(0, 20))
        x = channels_last(draw(1, 9), 16 * groups, samples, torch.float32).requires_grad_()
        weight = (torch.randn(16 * groups, 16, taps) / 16).requires_grad_()
        bias = torch.randn(16 * groups).requires_grad_()
        leaves, exact = (x, weight, bias), [v.detach().double() for v in (x, weight, bias)]
        for leaf in exact:
            leaf.requires_grad_()
        assert grouped_vector.fits(x, weight)
        found = grouped_convolution(*leaves, stride, padding, True)
        signal = F.pad(F.silu(exact[0].squeeze(2)), padding)
        expected = F.conv1d(signal, *exact[1:], stride, groups=groups).unsqueeze(2)
        upstream = torch.randn(found.shape)
        gradients = torch.autograd.grad(found, leaves, upstream)
        references = torch.autograd.grad(expected, exact, upstream.double())
        for value, reference in zip((found, *gradients), (expected, *references), strict=True):
            assert relative_error(value, reference) < 2e-6, (groups, samples, stride, taps)


def test_vectors_give_the_same_bits_with_any_number_of_threads() -> None:
    x, weight = channels_last(5, 160, 700, torch.float32), torch.randn(160, 16, 16)
    upstream = channels_last(5, 160, 350, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            leaves = [v.clone().requires_grad_() for v in (x, weight, torch.ones(160))]
            output = grouped_convolution(*leaves, 2, same_padding(700, 16, 2), True)
            results.append([output, *torch.autograd.grad(output, leaves, upstream)])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(map(torch.equal, others, results[0]))


def test_vectors_take_extreme_values_of_swish() -> None:
    values = torch.tensor([0.0, -0.0, 1e-30, -88.0, 88.0, -1e4, 1e30, 3.4e38, -103.9, 20.0])
    x = values.repeat(16, 1)[None, :, None].contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weight = torch.eye(16)[:, :, None].requires_grad_()
    found = grouped_convolution(x, weight, None, 1, (0, 0), True)
    torch.testing.assert_close(found, F.silu(x), rtol=1e-6, atol=1e-30)
    (slope,) = torch.autograd.grad(found.sum(), x)
    (expected,) = torch.autograd.grad(F.silu(x).sum(), x)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)


def test_grouped_convolution_of_random_shapes_equals_float64() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(40):
        width = draw(1, 3) * 8
        channels = width * draw(1, 9)
        samples, stride, taps = draw(1, 90), draw(1, 4), draw(2, 17)
        x = channels_last(draw(1, 4), channels, samples, torch.float64).requires_grad_()
        weight = torch.randn(channels, width, taps, dtype=torch.float64).requires_grad_()
        bias = torch.randn(channels, dtype=torch.float64).requires_grad_()
        leaves = (x, weight, bias)
        found = grouped_convolution(*leaves, stride, same_padding(samples, taps, stride), True)
        expected = plain_grouped(*leaves, stride, True)
        torch.testing.assert_close(found, expected)
        upstream = torch.randn(found.shape, dtype=torch.float64)
        torch.testing.assert_close(
            torch.autograd.grad(found, leaves, upstream, retain_graph=True),
            torch.autograd.grad(expected, leaves, upstream),
        )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [(12, 20), (20, 400), (400, 16)], ids=str)
def test_pointwise_convolution_and_its_gradients_equal_float64(
    channels: tuple[int, int], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = channels_last(3, channels[0], 21, dtype)
    weight = (torch.randn(channels[1], channels[0], 1) / 8).to(dtype)
    bias = torch.randn(channels[1]).to(dtype)
    leaves = [v.clone().requires_grad_() for v in (x, weight, bias)]
    exact = [v.double().requires_grad_() for v in (x, weight, bias)]
    found = pointwise(*leaves)
    expected = F.conv1d(exact[0].squeeze(2), *exact[1:]).unsqueeze(2)
    assert relative_error(found, expected) < TOLERANCE[dtype]
    upstream = channels_last(3, channels[1], 21, dtype)
    gradients = torch.autograd.grad(found, leaves, upstream)
    references = torch.autograd.grad(expected, exact, upstream.double())
    for gradient, reference in zip(gradients, references, strict=True):
        assert gradient.shape == reference.shape
        assert relative_error(gradient, reference) < TOLERANCE[dtype]


def test_frozen_inputs_and_parameters_get_no_gradient_and_change_no_other() -> None:
    x = channels_last(2, 32, 20, torch.float32)
    weight, bias = torch.randn(32, 16, 16), torch.randn(32)
    padding = same_padding(20, 16, 1)
    everything = [v.clone().requires_grad_() for v in (x, weight, bias)]
    grouped_convolution(*everything, 1, padding, True).sum().backward()
    for kept in range(3):
        some = [v.clone().requires_grad_(i == kept) for i, v in enumerate((x, weight, bias))]
        grouped_convolution(*some, 1, padding, True).sum().backward()
        for i, (leaf, whole) in enumerate(zip(some, everything, strict=True)):
            if i == kept:
                torch.testing.assert_close(leaf.grad, whole.grad)
            else:
                assert leaf.grad is None


def test_time_mean_and_its_gradient_are_those_of_mean() -> None:
    x = channels_last(2, 6, 9, torch.float64).requires_grad_()
    torch.testing.assert_close(time_mean(x), x.mean((2, 3)))
    assert torch.autograd.gradcheck(time_mean, x)


def test_a_nan_stays_in_its_record() -> None:
    x = channels_last(3, 32, 21, torch.float32)
    x[0] = torch.nan
    weight = torch.randn(32, 16, 16).requires_grad_()
    output = grouped_convolution(x, weight, None, 1, same_padding(21, 16, 1), True)
    assert output[0].isnan().any() and not output[1:].isnan().any()


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_five_hundred_steps_follow_the_reference_network(precision: str) -> None:
    num_steps = 500 if os.environ.get("ECG_TEST_TIER") == "all" else 120
    torch.manual_seed(0)
    ours = create_model(
        "net1d_1m", num_labels=5, widths=(16, 32, 48), depths=(1, 2, 1), base_filters=16
    )
    reference = ReferenceNet1D(ours.config)
    reference.load_state_dict(ours.state_dict())
    signal = torch.randn(128, 12, 96)
    targets = (signal[:, :5, 30:60].mean(2) > 0).float()
    curves = []
    for model in (ours, reference):
        optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
        losses = []
        for step in range(num_steps):
            rows = slice(16 * (step % 8), 16 * (step % 8) + 16)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                logits = model(signal[rows])
            loss = F.binary_cross_entropy_with_logits(logits.float(), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        # Rounding differs from the first step on; passes over the data compare, not steps.
        curves.append(torch.tensor(losses[: num_steps // 8 * 8]).view(-1, 8).mean(1))
    assert curves[0][-1] < 0.8 * curves[0][0]
    torch.testing.assert_close(curves[0][:8], curves[1][:8], atol=0.01, rtol=0)
    torch.testing.assert_close(curves[0], curves[1], atol=0.08, rtol=0)

"""Parameter groups of the optimizer, and the weight average against a naive loop."""

import pytest
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from torch import nn

from ecgfounder_train.core.errors import UserError
from ecgfounder_train.models import create_model
from ecgfounder_train.settings.training import OptimizerSettings
from ecgfounder_train.training.ema import WeightAverage
from ecgfounder_train.training.module import can_be_fused, create_optimizer


def tiny_model() -> nn.Module:
    return create_model(
        "net1d_1m", 12, 5, widths=[16, 32], depths=[1, 1], base_filters=8, norm="batch"
    )


def test_decay_all_puts_every_trainable_tensor_into_one_decayed_group() -> None:
    model = create_model("net1d_1m", 12, 5, widths=[16, 32], depths=[1, 1], base_filters=8)
    groups = create_optimizer(OptimizerSettings(weight_decay=0.3), model, fused=False).param_groups
    assert [group["weight_decay"] for group in groups] == [0.3]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(trainable) < len(list(model.parameters()))
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in trainable}


def test_decay_all_false_spares_biases_and_normalisation() -> None:
    model = tiny_model()
    settings = OptimizerSettings(weight_decay=0.3, decay_all=False)
    decayed, spared = create_optimizer(settings, model, fused=False).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in spared["params"])
    num_trainable = sum(p.requires_grad for p in model.parameters())
    assert len(decayed["params"]) + len(spared["params"]) == num_trainable


def test_float16_clips_gradients_without_their_scale() -> None:
    # What scales the gradients takes the scale back before they are clipped, but for a fused step.
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    weight = nn.Parameter(torch.ones(4))
    settings = OptimizerSettings()
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert can_be_fused(cuda, "bf16-mixed") and can_be_fused(cuda, "32-true")
    assert not can_be_fused(cuda, "16-mixed") and not can_be_fused(cpu, "32-true")
    parameters = nn.ParameterList([weight])
    optimizer = create_optimizer(settings, parameters, can_be_fused(cuda, "16-mixed"))
    assert not _optimizer_handles_unscaling(optimizer)
    fused = create_optimizer(settings, parameters, can_be_fused(cuda, "bf16-mixed"))
    assert _optimizer_handles_unscaling(fused)
    scaler.scale(3 * weight.sum()).backward()
    scaler.unscale_(optimizer)
    assert float(torch.nn.utils.clip_grad_norm_([weight], 1.0)) == pytest.approx(6.0)


def test_one_step_is_adamw_by_hand() -> None:
    model = nn.Linear(3, 1, bias=False)
    start = model.weight.detach().clone()
    settings = OptimizerSettings(lr=0.1, weight_decay=0.2, beta1=0.9, beta2=0.99, eps=1e-6)
    optimizer = create_optimizer(settings, model, fused=False)
    gradient = torch.tensor([[0.5, -2.0, 0.1]])
    model.weight.grad = gradient.clone()
    optimizer.step()
    # After bias correction the first moment is the gradient, the second its square.
    expected = start * (1 - 0.1 * 0.2) - 0.1 * gradient / (gradient.abs() + 1e-6)
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"name": "sgd"}, {"weight_decay": -1.0}])
def test_wrong_optimizer_settings_are_named(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"optimizer\.{next(iter(wrong))}"):
        OptimizerSettings.from_config(wrong)


def test_average_is_that_of_a_naive_loop() -> None:
    torch.manual_seed(0)
    model, batch, half_life = tiny_model(), 8, 100.0
    average = WeightAverage(model, half_life)
    naive = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 60):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(torch.randn(value.shape) if value.is_floating_point() else 1)
        average.update(model, batch, step * batch)
        # Early on the half-life is a quarter of what was seen.
        decay = 0.5 ** (batch / min(half_life, max(step * batch, batch) / 4))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                naive[name] = decay * naive[name] + (1 - decay) * value
            else:
                naive[name] = value.clone()
    averaged = average.model.state_dict()
    assert not average.model.training
    assert any(not value.is_floating_point() for value in naive.values())
    for name, value in naive.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-4, atol=1e-4)
        assert averaged[name].data_ptr() != model.state_dict()[name].data_ptr()


def test_half_life_is_what_its_name_says() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = WeightAverage(model, 1000.0)
    nn.init.ones_(model.weight)
    for _ in range(100):
        average.update(model, 10, samples_seen=1_000_000)
    assert average.model.weight.item() == pytest.approx(0.5, abs=1e-5)

"""A trained network as an ONNX graph, the load half of its signal profile included.

The graph is written node by node instead of traced: a trace would fix the padding of one signal
length (it depends on whether the length is odd), while ONNX's own SAME_UPPER padding follows any
length. It needs no exporter, and the compiled kernels of `models.kernels` play no part.

Inputs (all required):
    ecg: float32 (batch, leads, samples), millivolts, as the build half of the profile leaves them
        (leads in the profile's order, filtered, resampled). Any batch and length.
    valid_start, valid_num_samples: int64 (batch,). Which samples are signal; the rest is padding
        and does not count. 0 and the length for a whole window.
    stats: float32 (batch, leads, 2), only where the profile takes its statistics before filtering
        (`author`), or with `statistics=input`: mean and standard deviation of each lead in
        millivolts. Otherwise they are taken inside, over the valid samples.

Outputs:
    logits: float32 (batch, outputs), what the network gives.
    probabilities: float32 (batch, labels), calibrated; present where there is a calibration.
    values: float32 (batch, quantities), in their units; present where outputs are quantities.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ecgfounder_train.core.errors import UserError, did_you_mean
from ecgfounder_train.metrics import Calibration
from ecgfounder_train.models import Net1D
from ecgfounder_train.models.net1d import AttentionPool, Block, SameConv1d
from ecgfounder_train.records import LoadNormalisation, SignalProfile
from ecgfounder_train.weights.trained_model import TrainedModel

OPSET = 17  # the first with LayerNormalization; runtimes of 2022 and later know it
IR_VERSION = 8
STATISTICS = ("auto", "input")
_STORED = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16,
           "bfloat16": TensorProto.BFLOAT16}  # fmt: skip

Where = Literal["inside", "input", "none"]


def statistics_place(profile: SignalProfile, wanted: str = "auto") -> Where:
    """Return whether a profile's statistics can be taken inside the graph.

    They can where nothing but windowing and decimation to the final rate follows them. Then they
    are those of the signal that is fed; a profile that takes them before windowing means the whole
    record, so feed a longer record's windows with `stats` as input.

    Raises:
        UserError: `wanted` is unknown.
    """
    if wanted not in STATISTICS:
        raise UserError(
            f"onnx.statistics={wanted!r} is unknown.{did_you_mean(str(wanted), STATISTICS)}"
        )
    if not profile.load_normalisation.uses_statistics:
        return "none"
    after = profile.stages[profile.stages.index("statistics") + 1 :]
    changed = any(stage != "window" for stage in after)
    return "input" if changed or wanted == "input" else "inside"


def build_graph(
    trained: TrainedModel, precision: str = "float32", statistics: str = "auto"
) -> onnx.ModelProto:
    """Return the graph of a trained model; one lead is fed where it looks at lead I alone.

    Args:
        trained: What to write.
        precision: Of the stored weights; they are converted to float32 when the graph is loaded.
        statistics: `auto` or `input`, see above.

    Raises:
        UserError: The network is not a Net1D.
    """
    network = trained.model
    if not isinstance(network, Net1D):
        raise UserError(f"format=onnx writes Net1D networks, not a {type(network).__name__}.")
    trained = trained.of_lead_i()
    profile, place = trained.profile, statistics_place(trained.profile, statistics)
    graph = _Graph(precision)
    num_leads, num_outputs = network.num_leads, network.num_labels
    signal = _normalised(graph, profile.load_normalisation, num_leads, place)
    logits = _network(graph, network, signal, "logits")
    results = [_value("logits", TensorProto.FLOAT, ["batch", num_outputs])]
    binary = [i for i, output in enumerate(trained.outputs) if output.kind == "binary"]
    if trained.decisions is not None:
        chosen = _columns(graph, logits, binary, num_outputs)
        _calibrated(graph, trained.decisions.calibration, chosen, "probabilities")
        results.append(_value("probabilities", TensorProto.FLOAT, ["batch", len(binary)]))
    quantities = [i for i in range(num_outputs) if i not in set(binary)]
    if quantities:
        chosen = _columns(graph, logits, quantities, num_outputs)
        scale = [trained.outputs[i].std for i in quantities]
        shift = [trained.outputs[i].mean for i in quantities]
        scaled = graph.node("Mul", [chosen, graph.numbers(scale)])
        graph.node("Add", [scaled, graph.numbers(shift)], name="values")
        results.append(_value("values", TensorProto.FLOAT, ["batch", len(quantities)]))
    inputs = [
        _value("ecg", TensorProto.FLOAT, ["batch", num_leads, "samples"],
               f"millivolts, leads {' '.join(profile.leads)}, {profile.fs:g} Hz"),
        _value("valid_start", TensorProto.INT64, ["batch"], "first sample that is signal"),
        _value("valid_num_samples", TensorProto.INT64, ["batch"], "number of signal samples"),
    ]  # fmt: skip
    if place == "input":
        note = "mean and standard deviation of each lead in millivolts, as the profile takes them"
        inputs.append(_value("stats", TensorProto.FLOAT, ["batch", num_leads, 2], note))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "ecg_model", inputs, results, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ecgfounder_train",
    )
    helper.set_model_props(model, {"ecg_model": json.dumps(trained.describe(), allow_nan=False)})
    onnx.checker.check_model(model, full_check=True)
    return model


def _value(name: str, kind: int, shape: Sequence[int | str], note: str = "") -> Any:
    return helper.make_tensor_value_info(name, kind, shape, note)


class _Graph:
    """Nodes and weights in the making; `node` returns the name of its result."""

    def __init__(self, precision: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.precision = precision

    def node(self, kind: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        result = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def constant(self, array: NDArray[Any]) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def numbers(self, values: float | Sequence[float] | NDArray[Any]) -> str:
        return self.constant(np.asarray(values, np.float32))

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weight(self, name: str, tensor: Tensor) -> str:
        """Store a weight in the graph's precision; the graph computes in float32."""
        stored = _STORED[self.precision]
        array = tensor.detach().float().cpu().numpy()
        if self.precision == "bfloat16":
            # numpy has no bfloat16: its bits are the upper half of a rounded float32.
            bits = tensor.detach().cpu().to(torch.bfloat16).view(torch.int16).numpy()
            proto = helper.make_tensor(name, stored, array.shape, bits.tobytes(), raw=True)
        else:
            kind = np.float16 if self.precision == "float16" else np.float32
            proto = numpy_helper.from_array(array.astype(kind), name)
        self.initializers.append(proto)
        return (
            name
            if stored == TensorProto.FLOAT
            else self.node("Cast", [name], name=f"{name}.float32", to=TensorProto.FLOAT)
        )


def _columns(graph: _Graph, x: str, chosen: Sequence[int], total: int) -> str:
    if len(chosen) == total:
        return x
    return graph.node("Gather", [x, graph.integers(*chosen)], axis=1)


def _normalised(graph: _Graph, how: LoadNormalisation, num_leads: int, place: Where) -> str:
    """Return the name of the network's input: `loader.transforms.normalise_on_device`."""
    length = graph.node("Gather", [graph.node("Shape", ["ecg"]), graph.integers(2)], axis=0)
    scalar = graph.node("Squeeze", [length, graph.integers(0)])
    zero, one = (graph.constant(np.array(value, np.int64)) for value in (0, 1))
    time = graph.node("Range", [zero, scalar, one])
    start = graph.node("Unsqueeze", ["valid_start", graph.integers(1)])
    count = graph.node("Unsqueeze", ["valid_num_samples", graph.integers(1)])
    begun = graph.node("GreaterOrEqual", [time, start])
    before_end = graph.node("Less", [time, graph.node("Add", [start, count])])
    valid = graph.node("Unsqueeze", [graph.node("And", [begun, before_end]), graph.integers(1)])
    nothing = graph.numbers(0)
    signal = graph.node("Where", [valid, "ecg", nothing])
    if how.kind == "fixed":
        signal = graph.node("Div", [signal, graph.numbers(how.scale_mv)])
    if place != "none":
        if place == "input":
            mean, std = _given_moments(graph, how)
        else:
            mean, std = _own_moments(graph, how, signal, valid, count, num_leads)
        centred = graph.node("Sub", [signal, mean]) if how.centre else signal
        spread = graph.node("Add", [std, graph.numbers(how.eps)])
        signal = graph.node("Div", [centred, spread])
    if how.clip is not None:
        limits = [graph.numbers(sign * how.clip) for sign in (-1, 1)]
        signal = graph.node("Clip", [signal, *limits])
    return graph.node("Where", [valid, signal, nothing])


def _given_moments(graph: _Graph, how: LoadNormalisation) -> tuple[str, str]:
    mean = graph.node("Gather", ["stats", graph.integers(0)], axis=2)
    std = graph.node("Gather", ["stats", graph.integers(1)], axis=2)
    if how.kind == "joint":
        joint = graph.node("ReduceMean", [mean], axes=[1], keepdims=1)
        apart = graph.node("Sub", [mean, joint])
        squares = [graph.node("Mul", [item, item]) for item in (std, apart)]
        pooled = graph.node("ReduceMean", [graph.node("Add", squares)], axes=[1], keepdims=1)
        mean, std = joint, graph.node("Sqrt", [pooled])
    return mean, std


def _own_moments(
    graph: _Graph, how: LoadNormalisation, signal: str, valid: str, count: str, num_leads: int
) -> tuple[str, str]:
    axes = graph.integers(1, 2) if how.kind == "joint" else graph.integers(2)
    size = graph.node("Cast", [count], to=TensorProto.FLOAT)
    size = graph.node("Unsqueeze", [size, graph.integers(2)])
    if how.kind == "joint":
        size = graph.node("Mul", [size, graph.numbers(num_leads)])
    mean = graph.node("Div", [graph.node("ReduceSum", [signal, axes], keepdims=1), size])
    # The padding is 0, not the mean: it must not enter the squares.
    apart = graph.node("Sub", [signal, mean])
    apart = graph.node("Where", [valid, apart, graph.numbers(0)])
    total = graph.node("ReduceSum", [graph.node("Mul", [apart, apart]), axes], keepdims=1)
    return mean, graph.node("Sqrt", [graph.node("Div", [total, size])])


def _network(graph: _Graph, network: Net1D, x: str, name: str) -> str:
    x = _convolution(graph, network.first_conv, "first_conv", x)
    if network.use_norm:
        x = _batch_norm(graph, network.first_bn, "first_bn", x)
    x = _silu(graph, x)
    for stage_number, stage in enumerate(network.stage_list):
        for number, block in enumerate(stage.block_list):  # type: ignore[union-attr, arg-type]
            assert isinstance(block, Block)
            x = _block(graph, block, f"stage_list.{stage_number}.block_list.{number}", x)
    if network.config.pooling == "attention":
        assert isinstance(network.attention, AttentionPool)
        x = _attention(graph, network.attention, x)
    else:
        x = graph.node("ReduceMean", [x], axes=[2], keepdims=0)
    return _linear(graph, network.dense, "dense", x, name)


def _block(graph: _Graph, block: Block, path: str, x: str) -> str:
    def activated(x: str, norm: nn.BatchNorm2d, number: int) -> str:
        if block.use_norm:
            x = _batch_norm(graph, norm, f"{path}.bn{number}", x)
        return _silu(graph, x)

    out = x if block.is_first else activated(x, block.bn1, 1)
    out = _convolution(graph, block.conv1, f"{path}.conv1", out)
    out = _convolution(graph, block.conv2, f"{path}.conv2", activated(out, block.bn2, 2))
    out = _convolution(graph, block.conv3, f"{path}.conv3", activated(out, block.bn3, 3))
    squeezed = graph.node("ReduceMean", [out], axes=[2], keepdims=0)
    squeezed = _silu(graph, _linear(graph, block.se_fc1, f"{path}.se_fc1", squeezed))
    gate = graph.node("Sigmoid", [_linear(graph, block.se_fc2, f"{path}.se_fc2", squeezed)])
    gate = graph.node("Unsqueeze", [gate, graph.integers(2)])
    shortcut, stride = x, block.stride
    if stride > 1:
        # Zeros as in the original, not MaxPool's own padding by -inf. They are appended, since
        # onnxruntime (1.31) folds a Pad node into the MaxPool after it and pads by -inf again.
        first = [graph.integers(number) for number in (0, 1, 2)]
        sample = graph.node("Slice", [x, *first])
        zero = graph.node("Sub", [sample, sample])
        before = (stride - 1) // 2
        around = [zero] * before + [x] + [zero] * (stride - 1 - before)
        shortcut = graph.node("Concat", around, axis=2)
        shortcut = graph.node("MaxPool", [shortcut], kernel_shape=[stride], strides=[stride])
    if any(block.channel_padding):
        below, above = block.channel_padding
        shortcut = graph.node("Pad", [shortcut, graph.integers(0, below, 0, 0, above, 0)])
    return graph.node("Add", [shortcut, graph.node("Mul", [out, gate])])


def _convolution(graph: _Graph, module: SameConv1d, path: str, x: str) -> str:
    conv = module.conv
    assert conv.bias is not None
    inputs = [
        x,
        graph.weight(f"{path}.conv.weight", conv.weight),
        graph.weight(f"{path}.conv.bias", conv.bias),
    ]
    return graph.node(
        "Conv",
        inputs,
        auto_pad="SAME_UPPER",
        kernel_shape=list(conv.kernel_size),
        strides=list(conv.stride),
        group=conv.groups,
    )


def _batch_norm(graph: _Graph, norm: nn.BatchNorm2d, path: str, x: str) -> str:
    assert norm.running_mean is not None and norm.running_var is not None
    inputs = [
        graph.weight(f"{path}.{name}", tensor)
        for name, tensor in (
            ("weight", norm.weight),
            ("bias", norm.bias),
            ("running_mean", norm.running_mean),
            ("running_var", norm.running_var),
        )
    ]
    return graph.node("BatchNormalization", [x, *inputs], epsilon=norm.eps)


def _linear(graph: _Graph, linear: nn.Linear, path: str, x: str, name: str = "") -> str:
    inputs = [
        x,
        graph.weight(f"{path}.weight", linear.weight),
        graph.weight(f"{path}.bias", linear.bias),
    ]
    return graph.node("Gemm", inputs, name=name, transB=1)


def _silu(graph: _Graph, x: str) -> str:
    return graph.node("Mul", [x, graph.node("Sigmoid", [x])])


def _attention(graph: _Graph, pool: AttentionPool, x: str) -> str:
    by_time = graph.node("Transpose", [x], perm=[0, 2, 1])
    norm = pool.norm
    inputs = [
        by_time,
        graph.weight("attention.norm.weight", norm.weight),
        graph.weight("attention.norm.bias", norm.bias),
    ]
    normed = graph.node("LayerNormalization", inputs, axis=-1, epsilon=norm.eps)
    matrix = graph.weight("attention.score.weight", pool.score.weight)
    scores = graph.node("MatMul", [normed, graph.node("Transpose", [matrix], perm=[1, 0])])
    weights = graph.node("Transpose", [graph.node("Softmax", [scores], axis=1)], perm=[0, 2, 1])
    weights = graph.node("Unsqueeze", [weights, graph.integers(2)])
    width = norm.normalized_shape[0] // pool.num_groups
    grouped = graph.node("Reshape", [x, graph.integers(0, pool.num_groups, width, -1)])
    weighted = graph.node("Mul", [grouped, weights])
    summed = graph.node("ReduceSum", [weighted, graph.integers(3)], keepdims=0)
    return graph.node("Reshape", [summed, graph.integers(0, -1)])


def _calibrated(graph: _Graph, calibration: Calibration, logits: str, name: str) -> str:
    """Write the probabilities: per label a sigmoid of a line, or straight lines between points."""
    curves = calibration.curves
    slopes = graph.numbers([curve.slope for curve in curves])
    intercepts = graph.numbers([curve.intercept for curve in curves])
    line = graph.node("Add", [graph.node("Mul", [logits, slopes]), intercepts])
    longest = max((len(curve.logits) for curve in curves), default=0)
    smooth = graph.node("Sigmoid", [line], name="" if longest else name)
    if not longest:
        return smooth
    # Sum over the pieces of (how far along the piece, from 0 to 1) x (what it adds).
    shape = (len(curves), longest - 1)
    starts, lengths, gains = np.zeros(shape), np.ones(shape), np.zeros(shape)
    first = np.zeros(len(curves))
    for row, curve in enumerate(curves):
        if curve.method == "isotonic":
            points, levels = np.array(curve.logits), np.array(curve.probabilities)
            pieces = slice(0, len(points) - 1)
            starts[row, pieces], lengths[row, pieces] = points[:-1], np.diff(points)
            gains[row, pieces], first[row] = np.diff(levels), levels[0]
    x = graph.node("Unsqueeze", [logits, graph.integers(2)])
    along = graph.node("Sub", [x, graph.numbers(starts)])
    along = graph.node("Div", [along, graph.numbers(lengths)])
    bounds = [graph.numbers(bound) for bound in (0, 1)]
    along = graph.node("Clip", [along, *bounds])
    gained = graph.node("Mul", [along, graph.numbers(gains)])
    summed = graph.node("ReduceSum", [gained, graph.integers(2)], keepdims=0)
    stepped = graph.node("Add", [summed, graph.numbers(first)])
    is_stepped = graph.constant(np.array([curve.method == "isotonic" for curve in curves]))
    return graph.node("Where", [is_stepped, stepped, smooth], name=name)

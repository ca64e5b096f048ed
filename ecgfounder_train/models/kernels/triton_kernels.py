"""Triton kernels of the grouped convolution and of the gated shortcut, on channels-last signals.

Signals are (B, T, C) in memory. A group has 16 channels and the kernel 16 taps, so the convolution
of a tile of outputs is one matrix product of (outputs, taps x 16) with (taps x 16, 16): the left
side is never laid out, its overlapping rows are read through the cache. Padding is a mask, so
nothing is copied for it. Every sum is taken in float32 and in a fixed order.

`UPCAST` turns operands to float32 before a product: Triton's interpreter, which runs these kernels
on a CPU in the tests, has no bfloat16 product.
"""

# Triton reads these bodies itself: annotations other than constexpr, and keyword defaults, are out.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def grouped_forward(
    x_ptr, weight_ptr, bias_ptr, y_ptr, num_samples, num_outputs, channels, stride, before,
    TAPS: tl.constexpr, TAPS_AT_ONCE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    HAS_BIAS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of outputs of one group; grid (groups, tiles of outputs, records)."""
    group = tl.program_id(0)
    outputs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    record = tl.program_id(2).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    column = tl.arange(0, TAPS_AT_ONCE * WIDTH)
    inner, tap_of_column = column % WIDTH, column // WIDTH
    x_ptr += record * num_samples * channels + group * WIDTH
    weight_ptr += group * TAPS * WIDTH * WIDTH
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in tl.static_range(0, TAPS, TAPS_AT_ONCE):
        time = outputs[:, None] * stride - before + first + tap_of_column[None, :]
        inside = (time >= 0) & (time < num_samples) & (outputs[:, None] < num_outputs)
        signal = tl.load(x_ptr + time * channels + inner[None, :], mask=inside, other=0.0)
        # Weights have the layout (group, tap, input, output).
        taps = tl.load(
            weight_ptr + (first * WIDTH + column[:, None]) * WIDTH + channel[None, :],
            mask=(first + tap_of_column < TAPS)[:, None],
            other=0.0,
        )
        if UPCAST:
            signal, taps = signal.to(tl.float32), taps.to(tl.float32)
        total += tl.dot(signal, taps, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias_ptr + group * WIDTH + channel)[None, :].to(tl.float32)
    y_ptr += record * num_outputs * channels + group * WIDTH
    target = y_ptr + outputs[:, None] * channels + channel[None, :]
    tl.store(target, total.to(y_ptr.dtype.element_ty), mask=outputs[:, None] < num_outputs)


@triton.jit
def grouped_input_gradient(
    gradient_ptr, weight_ptr, x_ptr, result_ptr, num_samples, num_outputs, channels, before,
    STRIDE: tl.constexpr, TAPS: tl.constexpr, TAPS_AT_ONCE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, SWISH: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of the input's gradient; grid (groups, tiles x STRIDE phases, records).

    Inputs STRIDE apart meet the same taps, so a tile takes inputs of one phase and only the taps
    that reach them. With SWISH the result is multiplied by the slope of Swish at `x`.
    """
    group = tl.program_id(0)
    phase = tl.program_id(1) % STRIDE
    step = tl.program_id(1) // STRIDE * BLOCK + tl.arange(0, BLOCK)
    record = tl.program_id(2).to(tl.int64)
    time = step * STRIDE + phase
    first_tap = (phase + before) % STRIDE
    reach = (phase + before) // STRIDE
    channel = tl.arange(0, WIDTH)
    column = tl.arange(0, TAPS_AT_ONCE * WIDTH)
    inner, tap_of_column = column % WIDTH, column // WIDTH
    gradient_ptr += record * num_outputs * channels + group * WIDTH
    weight_ptr += group * TAPS * WIDTH * WIDTH
    total = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in tl.static_range(0, (TAPS + STRIDE - 1) // STRIDE, TAPS_AT_ONCE):
        number = first + tap_of_column
        tap = first_tap + STRIDE * number
        output = step[:, None] + reach - number[None, :]
        inside = (output >= 0) & (output < num_outputs) & (tap < TAPS)[None, :]
        upstream = tl.load(
            gradient_ptr + output * channels + inner[None, :], mask=inside, other=0.0
        )
        # The product sums over outputs of a group: the weights are read transposed.
        place = (tap[:, None] * WIDTH + channel[None, :]) * WIDTH + inner[:, None]
        taps = tl.load(weight_ptr + place, mask=(tap < TAPS)[:, None], other=0.0)
        if UPCAST:
            upstream, taps = upstream.to(tl.float32), taps.to(tl.float32)
        total += tl.dot(upstream, taps, input_precision="ieee")
    inside = (time < num_samples)[:, None]
    place = (record * num_samples + time[:, None]) * channels + group * WIDTH + channel[None, :]
    if SWISH:
        x = tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32)
        sigmoid = 1.0 / (1.0 + tl.exp(-x))
        total *= sigmoid * (1.0 + x * (1.0 - sigmoid))
    tl.store(result_ptr + place, total.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit
def grouped_weight_gradient(
    x_ptr, gradient_ptr, part_ptr, num_records, num_samples, num_outputs, channels, stride, before,
    tiles_per_part,
    TAPS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The sum over some tiles of one group's weight gradient; grid (groups, parts).

    Parts are added up afterwards: float32 atomics would add in another order each time.
    """
    group = tl.program_id(0)
    part = tl.program_id(1)
    channel = tl.arange(0, WIDTH)
    column = tl.arange(0, TAPS * WIDTH)
    inner, tap = column % WIDTH, column // WIDTH
    tiles_per_record = tl.cdiv(num_outputs, BLOCK)
    total = tl.zeros((TAPS * WIDTH, WIDTH), tl.float32)
    first = part * tiles_per_part
    last = tl.minimum(first + tiles_per_part, num_records * tiles_per_record)
    for tile in range(first, last):
        record = (tile // tiles_per_record).to(tl.int64)
        outputs = tile % tiles_per_record * BLOCK + tl.arange(0, BLOCK)
        time = outputs[None, :] * stride - before + tap[:, None]
        inside = (time >= 0) & (time < num_samples) & (outputs[None, :] < num_outputs)
        signal = tl.load(
            x_ptr + (record * num_samples + time) * channels + group * WIDTH + inner[:, None],
            mask=inside,
            other=0.0,
        )
        place = (record * num_outputs + outputs[:, None]) * channels
        upstream = tl.load(
            gradient_ptr + place + group * WIDTH + channel[None, :],
            mask=outputs[:, None] < num_outputs,
            other=0.0,
        )
        if UPCAST:
            signal, upstream = signal.to(tl.float32), upstream.to(tl.float32)
        total += tl.dot(signal, upstream, input_precision="ieee")
    place = (part * tl.num_programs(0) + group) * TAPS * WIDTH * WIDTH
    tl.store(part_ptr + place + column[:, None] * WIDTH + channel[None, :], total)


@triton.jit
def gated_shortcut_forward(
    out_ptr, gate_ptr, x_ptr, result_ptr, num_samples, num_outputs, channels, channels_in, offset,
    before,
    STRIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out * gate + shortcut(x) for a tile; grid (tiles of channels, tiles of time, records).

    The shortcut is x pooled by its maximum over STRIDE samples (padded by zeros, as published), its
    channels set into the middle of the wider output.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    time = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    record = tl.program_id(2).to(tl.int64)
    inside = (time < num_outputs)[:, None] & (channel < channels)[None, :]
    place = (record * num_outputs + time[:, None]) * channels + channel[None, :]
    out = tl.load(out_ptr + place, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + record * channels + channel, mask=channel < channels, other=0.0)
    source = channel - offset
    has_source = ((source >= 0) & (source < channels_in))[None, :] & inside
    x_ptr += record * num_samples * channels_in
    shortcut = tl.full((BLOCK_T, BLOCK_C), float("-inf"), tl.float32)
    for step in tl.static_range(STRIDE):
        sample = time * STRIDE - before + step
        real = has_source & ((sample >= 0) & (sample < num_samples))[:, None]
        where = sample[:, None] * channels_in + source[None, :]
        value = tl.load(x_ptr + where, mask=real, other=0.0).to(tl.float32)
        # A NaN must not vanish here, or a diverged run would continue.
        shortcut = tl.maximum(shortcut, value, propagate_nan=tl.PropagateNan.ALL)
    shortcut = tl.where(has_source, shortcut, 0.0)
    result = out * gate.to(tl.float32)[None, :] + shortcut
    tl.store(result_ptr + place, result.to(result_ptr.dtype.element_ty), mask=inside)


@triton.jit
def gated_shortcut_backward(
    upstream_ptr, out_ptr, gate_ptr, x_ptr, grad_out_ptr, grad_gate_ptr, grad_x_ptr,
    num_samples, num_outputs, channels, channels_in, offset, before,
    STRIDE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of `gated_shortcut_forward`; grid (tiles of channels, records).

    A program walks through time, so that the gate's gradient is a sum in a fixed order. The
    shortcut's gradient goes to the first sample that holds the maximum, as torch's pooling does.
    """
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    record = tl.program_id(1).to(tl.int64)
    known = channel < channels
    gate = tl.load(gate_ptr + record * channels + channel, mask=known, other=0.0).to(tl.float32)
    source = channel - offset
    has_source = (source >= 0) & (source < channels_in) & known
    x_ptr += record * num_samples * channels_in
    grad_x_ptr += record * num_samples * channels_in
    total = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, num_outputs, BLOCK_T):
        time = first + tl.arange(0, BLOCK_T)
        inside = (time < num_outputs)[:, None] & known[None, :]
        place = (record * num_outputs + time[:, None]) * channels + channel[None, :]
        upstream = tl.load(upstream_ptr + place, mask=inside, other=0.0).to(tl.float32)
        out = tl.load(out_ptr + place, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(upstream * out, 0)
        grad_out = upstream * gate[None, :]
        tl.store(grad_out_ptr + place, grad_out.to(grad_out_ptr.dtype.element_ty), mask=inside)
        largest = tl.full((BLOCK_T, BLOCK_C), float("-inf"), tl.float32)
        winner = tl.zeros((BLOCK_T, BLOCK_C), tl.int32)
        for step in tl.static_range(STRIDE):
            sample = time * STRIDE - before + step
            real = ((sample >= 0) & (sample < num_samples))[:, None] & has_source[None, :]
            where = sample[:, None] * channels_in + source[None, :]
            value = tl.load(x_ptr + where, mask=real, other=0.0).to(tl.float32)
            winner = tl.where(value > largest, step, winner)
            largest = tl.maximum(largest, value)
        for step in tl.static_range(STRIDE):
            sample = time * STRIDE - before + step
            real = ((sample >= 0) & (sample < num_samples))[:, None] & has_source[None, :] & inside
            where = sample[:, None] * channels_in + source[None, :]
            part = tl.where(winner == step, upstream, 0.0)
            tl.store(grad_x_ptr + where, part.to(grad_x_ptr.dtype.element_ty), mask=real)
    tl.store(
        grad_gate_ptr + record * channels + channel,
        total.to(grad_gate_ptr.dtype.element_ty),
        mask=known,
    )

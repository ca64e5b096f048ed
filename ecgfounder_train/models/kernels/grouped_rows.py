"""The loops of Swish and grouped convolution on a CPU, sixteen channels per group.

A group's convolution is one product of (outputs, taps x 16) with (taps x 16, 16) whose left side
overlaps itself, and so are both gradients: nothing is laid out for them. A piece of a group's
signal, its Swish taken on the way, fits in the cache next to the core, and everything that needs it
is done there: the backward pass takes Swish again from the input, and reads and writes each number
once.

Signals have the layout (record, time, channel). A unit of work is some records of one group.
"""

# numba reads these bodies itself, and gives intrinsics another signature.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, call-arg"
# mypy: disable-error-code="var-annotated"

import numba
import numpy as np

from ecgfounder_train.models.kernels.openmp import (
    FIRST_ARGUMENT,
    floats_at,
    job_of,
    next_unit,
    worker,
)
from ecgfounder_train.models.kernels.vector_rows import (
    ROWS,
    WIDTH,
    add_products,
    add_row,
    copy_row,
    multiply_row,
    swish_and_slope_row,
    swish_row,
    zero_row,
)

BLOCK = 128
"""Outputs at a time."""


@numba.njit(inline="always")
def _rows(count):
    return np.empty(max(count, 1) * WIDTH, np.float32)


@numba.njit
def _add_products(sums, at, a, a_at, rows_apart, b, b_at, depth):
    """Products whose left rows are some rows apart, with that number known to the compiler."""
    if rows_apart == 1:
        add_products(sums, at, a, a_at, WIDTH, 1, b, b_at, depth)
    elif rows_apart == 2:
        add_products(sums, at, a, a_at, 2 * WIDTH, 1, b, b_at, depth)
    else:
        add_products(sums, at, a, a_at, rows_apart * WIDTH, 1, b, b_at, depth)


@numba.njit
def _forward(job, x, weight, bias, y):
    (channels, num_records, num_samples, num_outputs, taps, stride, before, swish, together) = job[
        FIRST_ARGUMENT + 4 : FIRST_ARGUMENT + 13
    ]
    groups = channels // WIDTH
    signal = _rows((BLOCK + ROWS) * stride + taps)
    sums = _rows(ROWS)
    while True:
        unit = next_unit(job)
        if unit >= job[1]:
            return
        group = unit % groups
        first_record = unit // groups * together
        for record in range(first_record, min(first_record + together, num_records)):
            x_at = record * num_samples * channels + group * WIDTH
            y_at = record * num_outputs * channels + group * WIDTH
            for first in range(0, num_outputs, BLOCK):
                count = min(BLOCK, num_outputs - first)
                begin = first * stride - before
                for row in range((count - 1) * stride + taps):
                    time = begin + row
                    if time < 0 or time >= num_samples:
                        zero_row(signal, row * WIDTH)
                    elif swish:
                        swish_row(signal, row * WIDTH, x, x_at + time * channels)
                    else:
                        copy_row(signal, row * WIDTH, x, x_at + time * channels)
                for start in range(0, count, ROWS):
                    for row in range(ROWS):
                        copy_row(sums, row * WIDTH, bias, group * WIDTH)
                    _add_products(
                        sums, 0, signal, start * stride * WIDTH, stride,
                        weight, group * taps * WIDTH * WIDTH, taps * WIDTH,
                    )  # fmt: skip
                    for row in range(min(ROWS, count - start)):
                        place = y_at + (first + start + row) * channels
                        copy_row(y, place, sums, row * WIDTH)


@numba.njit
def _backward(job, x, gradient, weight, grad_x, grad_weight, grad_bias):
    (
        channels, num_records, num_samples, num_outputs, taps, stride, before, swish, together,
        wants_x, wants_weight,
    ) = job[FIRST_ARGUMENT + 6 : FIRST_ARGUMENT + 17]  # fmt: skip
    groups = channels // WIDTH
    most_taps = (taps + stride - 1) // stride
    signal = _rows((BLOCK + ROWS) * stride + max(taps, before))
    slope = _rows((BLOCK + ROWS) * stride + max(taps, before))
    # Gradients of the outputs from `reach_back` before a block to `reach_on` after it.
    reach_back = max(most_taps - 1 - before // stride, 0)
    reach_on = (before + stride - 1) // stride
    upstream = _rows(reach_back + BLOCK + ROWS + reach_on)
    sums = _rows(ROWS)
    num_steps = (num_samples + stride - 1) // stride
    depth = taps * WIDTH
    while True:
        unit = next_unit(job)
        if unit >= job[1]:
            return
        group = unit % groups
        part = unit // groups
        weight_at = group * depth * WIDTH
        sum_at = unit * depth * WIDTH
        for row in range(depth):
            zero_row(grad_weight, sum_at + row * WIDTH)
        zero_row(grad_bias, unit * WIDTH)
        for record in range(part * together, min((part + 1) * together, num_records)):
            x_at = record * num_samples * channels + group * WIDTH
            y_at = record * num_outputs * channels + group * WIDTH
            for first in range(0, max(num_outputs, num_steps), BLOCK):
                begin = first * stride - before
                outputs = min(BLOCK, num_outputs - first)
                steps = min(BLOCK, num_steps - first)
                for row in range(max((outputs - 1) * stride + taps, steps * stride + before)):
                    time = begin + row
                    if time < 0 or time >= num_samples:
                        zero_row(signal, row * WIDTH)
                    elif swish:
                        source = x_at + time * channels
                        swish_and_slope_row(signal, slope, row * WIDTH, x, source)
                    else:
                        copy_row(signal, row * WIDTH, x, x_at + time * channels)
                for row in range(reach_back + BLOCK + reach_on):
                    output = first - reach_back + row
                    if output < 0 or output >= num_outputs:
                        zero_row(upstream, row * WIDTH)
                    else:
                        copy_row(upstream, row * WIDTH, gradient, y_at + output * channels)
                if wants_weight and outputs > 0:
                    for row in range(0, depth, ROWS):
                        add_products(
                            grad_weight, sum_at + row * WIDTH, signal, row, 1, stride * WIDTH,
                            upstream, reach_back * WIDTH, outputs,
                        )  # fmt: skip
                    for row in range(outputs):
                        add_row(grad_bias, unit * WIDTH, upstream, (reach_back + row) * WIDTH)
                if wants_x:
                    _input_gradient(
                        upstream, weight, weight_at, slope, grad_x, x_at, sums, first, reach_back,
                        steps, channels, num_samples, taps, stride, before,
                        swish,
                    )  # fmt: skip


@numba.njit
def _input_gradient(
    upstream, weight, weight_at, slope, grad_x, x_at, sums, first, reach_back, steps, channels,
    num_samples, taps, stride, before, swish,
):  # fmt: skip
    """A block of the input's gradient: inputs `stride` apart meet the same taps, last first."""
    for phase in range(stride):
        first_tap = (phase + before) % stride
        reach = (phase + before) // stride
        count = max((taps - first_tap + stride - 1) // stride, 0)
        for start in range(0, steps, ROWS):
            for row in range(ROWS):
                zero_row(sums, row * WIDTH)
            lowest = reach_back + start + reach - count + 1
            add_products(
                sums, 0, upstream, lowest * WIDTH, WIDTH, 1, weight, weight_at, count * WIDTH
            )
            for row in range(min(ROWS, steps - start)):
                time = (first + start + row) * stride + phase
                if time < num_samples:
                    if swish:
                        place = (time - first * stride + before) * WIDTH
                        multiply_row(sums, row * WIDTH, sums, row * WIDTH, slope, place)
                    copy_row(grad_x, x_at + time * channels, sums, row * WIDTH)
        weight_at += count * WIDTH * WIDTH


@worker
def forward(pointer):
    """x, weight, bias, y, then the numbers that `_forward` reads."""
    job, at = job_of(pointer), FIRST_ARGUMENT
    x, y = floats_at(job[at]), floats_at(job[at + 3])
    _forward(job, x, floats_at(job[at + 1]), floats_at(job[at + 2]), y)


@worker
def backward(pointer):
    """x, gradient, weight, its gradients in this order, then the numbers that `_backward` reads."""
    job, at = job_of(pointer), FIRST_ARGUMENT
    x, gradient, grad_x = floats_at(job[at]), floats_at(job[at + 1]), floats_at(job[at + 3])
    sums, bias_sums = floats_at(job[at + 4]), floats_at(job[at + 5])
    _backward(job, x, gradient, floats_at(job[at + 2]), grad_x, sums, bias_sums)

"""Rows of sixteen numbers as vectors inside numba's loops: products, Swish.

A row is the sixteen channels of a group, which is one register of AVX-512 (two of AVX2, four of
NEON: LLVM splits it). numba alone leaves the sums of a product in memory; written out as LLVM's
vectors they stay in registers, and the products run at the rate of the multiplier: 116 of 117
GFLOP/s on one core of an EPYC, where oneDNN's grouped convolution reaches 32 and MKL's large matrix
products 92.

Arrays are flat float32. Offsets count elements. Nothing is checked.
"""

# numba reads these bodies itself and hands them values without Python types.
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WIDTH = 16
"""Numbers in a row."""
ROWS = 8 if get_host_cpu_features().get("avx512f") else 4
"""Rows of a product at a time: enough sums to hide the latency of a multiply-add (4 cycles), few
enough for the registers."""

_I32, _I64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_ROW = ir.VectorType(_FLOAT, WIDTH)
_INTS = ir.VectorType(_I32, WIDTH)


def _all(value: float) -> ir.Constant:
    return ir.Constant(_ROW, [value] * WIDTH)


def _ints(value: int) -> ir.Constant:
    return ir.Constant(_INTS, [value] * WIDTH)


def _pointer(context, builder, kind, array, offset):
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [offset])


def _load(builder, pointer):
    """Return the row at a pointer."""
    return builder.load(builder.bitcast(pointer, _ROW.as_pointer()), align=4)


def _store(builder, row, pointer):
    """Write a row."""
    builder.store(row, builder.bitcast(pointer, _ROW.as_pointer()), align=4)


def _fma(builder, a, b, c):
    function = ir.FunctionType(_ROW, [_ROW] * 3)
    name = f"llvm.fma.v{WIDTH}f32"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), [a, b, c])


def _spread(builder, number):
    one = builder.insert_element(ir.Constant(_ROW, ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(one, ir.Constant(_ROW, ir.Undefined), _ints(0))


def _exp(builder, x):
    """Return e to the power of x within 1e-7, after Cephes' expf; NaN stays NaN."""
    for bound, is_beyond in ((87.0, ">"), (-87.0, "<")):  # ordered: false for NaN
        x = builder.select(builder.fcmp_ordered(is_beyond, x, _all(bound)), _all(bound), x)
    function = ir.FunctionType(_ROW, [_ROW])
    rint = cgutils.get_or_insert_function(builder.module, function, f"llvm.rint.v{WIDTH}f32")
    power = builder.call(rint, [builder.fmul(x, _all(1.44269504088896341))])
    rest = _fma(builder, power, _all(-0.693359375), x)
    rest = _fma(builder, power, _all(2.12194440e-4), rest)
    series = _all(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1):
        series = _fma(builder, series, rest, _all(factor))
    series = _fma(builder, series, rest, _all(5.0000001201e-1))
    series = _fma(builder, series, builder.fmul(rest, rest), builder.fadd(rest, _all(1.0)))
    # An integer of a NaN is undefined; the series is NaN already.
    known = builder.select(builder.fcmp_ordered("ord", power, power), power, _all(0.0))
    exponent = builder.shl(builder.fptosi(known, _INTS), _ints(23))
    return builder.bitcast(builder.add(builder.bitcast(series, _INTS), exponent), _ROW)


def _sigmoid(builder, x):
    power = _exp(builder, builder.fsub(_all(-0.0), x))
    return builder.fdiv(_all(1.0), builder.fadd(_all(1.0), power))


@intrinsic
def add_products(typing, sums, at, a, a_at, row_step, column_step, b, b_at, depth):
    """Add to ROWS rows of sums: sums[m] += a[m * row_step + l * column_step] * b[l], l < depth.

    Rows of `a` may overlap: so a convolution is a product without any copy of its windows.
    """
    number = types.int64
    signature = types.void(sums, number, a, number, number, number, b, number, number)

    def generate(context, builder, signature, args):
        kinds = signature.args
        first_sum = _pointer(context, builder, kinds[0], args[0], args[1])
        left = _pointer(context, builder, kinds[2], args[2], args[3])
        right = _pointer(context, builder, kinds[6], args[6], args[7])
        row_step, column_step, depth = args[4], args[5], args[8]
        places = [builder.gep(first_sum, [_I64(m * WIDTH)]) for m in range(ROWS)]
        totals = [cgutils.alloca_once(builder, _ROW) for _ in range(ROWS)]  # become registers
        for place, total in zip(places, totals, strict=True):
            builder.store(_load(builder, place), total)
        with cgutils.for_range(builder, depth) as loop:
            place = builder.gep(right, [builder.mul(loop.index, _I64(WIDTH))])
            row = _load(builder, place)
            column = builder.gep(left, [builder.mul(loop.index, column_step)])
            for m, total in enumerate(totals):
                factor = builder.load(builder.gep(column, [builder.mul(_I64(m), row_step)]))
                product = _fma(builder, _spread(builder, factor), row, builder.load(total))
                builder.store(product, total)
        for place, total in zip(places, totals, strict=True):
            _store(builder, builder.load(total), place)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def copy_row(typing, target, at, source, source_at):
    """Copy a row."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        row = _load(builder, _pointer(context, builder, kinds[2], args[2], args[3]))
        _store(builder, row, _pointer(context, builder, kinds[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), generate


@intrinsic
def zero_row(typing, target, at):
    """Set a row to zero."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        _store(builder, _all(0.0), _pointer(context, builder, kind, args[0], args[1]))
        return context.get_dummy_value()

    return types.void(target, types.int64), generate


@intrinsic
def add_row(typing, target, at, source, source_at):
    """Add a row to another."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        place = _pointer(context, builder, kinds[0], args[0], args[1])
        row = _load(builder, _pointer(context, builder, kinds[2], args[2], args[3]))
        _store(builder, builder.fadd(_load(builder, place), row), place)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), generate


@intrinsic
def multiply_row(typing, target, at, a, a_at, b, b_at):
    """Write the product of two rows."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        left = _load(builder, _pointer(context, builder, kinds[2], args[2], args[3]))
        right = _load(builder, _pointer(context, builder, kinds[4], args[4], args[5]))
        place = _pointer(context, builder, kinds[0], args[0], args[1])
        _store(builder, builder.fmul(left, right), place)
        return context.get_dummy_value()

    number = types.int64
    return types.void(target, number, a, number, b, number), generate


@intrinsic
def swish_row(typing, target, at, source, source_at):
    """Write the Swish of a row."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        x = _load(builder, _pointer(context, builder, kinds[2], args[2], args[3]))
        place = _pointer(context, builder, kinds[0], args[0], args[1])
        _store(builder, builder.fmul(x, _sigmoid(builder, x)), place)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), generate


@intrinsic
def swish_and_slope_row(typing, target, slope, at, source, source_at):
    """Write the Swish of a row and its derivative."""

    def generate(context, builder, signature, args):
        kinds = signature.args
        x = _load(builder, _pointer(context, builder, kinds[3], args[3], args[4]))
        sigmoid = _sigmoid(builder, x)
        swish = builder.fmul(x, sigmoid)
        rest = builder.fsub(_all(1.0), sigmoid)
        derivative = _fma(builder, swish, rest, sigmoid)
        for number, row in ((0, swish), (1, derivative)):
            place = _pointer(context, builder, kinds[number], args[number], args[2])
            _store(builder, row, place)
        return context.get_dummy_value()

    return types.void(target, slope, types.int64, source, types.int64), generate

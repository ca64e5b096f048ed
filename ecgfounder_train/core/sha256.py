"""SHA-256 and HMAC-SHA-256 of a whole column of texts, compiled, several slices at once.

`hashlib` hashes faster, but a Python object per text, its copy and its digest take longer than all
the hashing, and hold the interpreter's lock.

Source: FIPS 180-4 (SHA-256), RFC 2104 (HMAC).
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecgfounder_train.core.compiled import compiled
from ecgfounder_train.core.text_columns import TextColumn, text_column, text_series

_CHUNK_ROWS = 500_000
_BLOCK = 64
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def _fractions_of_roots(count: int, power: int) -> NDArray[np.uint32]:
    """Return 32 bits after the point of the square or cube roots of the first primes."""
    primes = [n for n in range(2, 400) if all(n % factor for factor in range(2, n))][:count]
    words = []
    for prime in primes:
        # The whole root of prime * 2**(32 * power), by bisection: floats have too few digits.
        low, high = 0, prime << 32
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (
                (middle, high) if middle**power <= prime << (32 * power) else (low, middle - 1)
            )
        words.append(low % 2**32)
    return np.array(words, np.uint32)


_FIRST = _fractions_of_roots(8, 2)
_ROUNDS = _fractions_of_roots(64, 3)


def sha256_numbers(texts: pl.Series) -> pl.Series:
    """Return the first 64 bits of the SHA-256 of each text, as uint64; null where it is null."""

    def numbers(part: pl.Series) -> pl.Series:
        data, offsets, is_null = text_column(part)
        digests = np.empty((len(part), 8), np.uint32)
        nothing = np.zeros(0, np.uint8)
        _digest(data, offsets, nothing, 0, _FIRST, _FIRST[:0], _ROUNDS, digests)
        found = (digests[:, 0].astype(np.uint64) << np.uint64(32)) | digests[:, 1]
        series = pl.Series(texts.name, found)
        return series.set(pl.Series(is_null), None) if is_null.any() else series

    return _in_slices(numbers, texts)


def hmac_hexdigits(secret: bytes, prefix: bytes, texts: pl.Series, length: int) -> pl.Series:
    """Return the first hexadecimal digits of the HMAC of `prefix` and each text; null where null.

    Args:
        secret: At most 64 bytes.
    """
    assert len(secret) <= _BLOCK
    block = np.frombuffer(secret.ljust(_BLOCK, b"\0"), np.uint8)
    inner, outer = _after_block(block ^ np.uint8(0x36)), _after_block(block ^ np.uint8(0x5C))
    before = np.frombuffer(prefix, np.uint8)

    def digits(part: pl.Series) -> pl.Series:
        data, offsets, is_null = text_column(part)
        digests = np.empty((len(part), 8), np.uint32)
        _digest(data, offsets, before, _BLOCK, inner, outer, _ROUNDS, digests)
        shown = np.empty((len(part), length), np.uint8)
        _hexadecimal(digests, _DIGITS, shown)
        ends = np.arange(len(part) + 1, dtype=np.int64) * length
        return text_series(texts.name, TextColumn(shown.reshape(-1), ends, is_null))

    return _in_slices(digits, texts)


def _in_slices(function: Callable[[pl.Series], pl.Series], texts: pl.Series) -> pl.Series:
    starts = range(0, max(len(texts), 1), _CHUNK_ROWS)
    if len(starts) == 1:
        return function(texts)
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        return pl.concat(pool.map(function, (texts.slice(at, _CHUNK_ROWS) for at in starts)))


def _after_block(block: NDArray[np.uint8]) -> NDArray[np.uint32]:
    state = _FIRST.copy()
    _compress(state, block, np.empty(64, np.uint32), _ROUNDS)
    return state


@compiled
def _round(
    a: np.uint32,
    b: np.uint32,
    c: np.uint32,
    d: np.uint32,
    e: np.uint32,
    f: np.uint32,
    g: np.uint32,
    h: np.uint32,
    word: np.uint32,
) -> tuple[np.uint32, np.uint32]:
    """Return what takes the places of `d` and `h`."""
    u = np.uint32
    s1 = u((e >> u(6)) | u(e << u(26))) ^ u((e >> u(11)) | u(e << u(21)))
    s1 = s1 ^ u((e >> u(25)) | u(e << u(7)))
    one = u(h + u(s1) + u(g ^ (e & (f ^ g))) + word)
    s0 = u((a >> u(2)) | u(a << u(30))) ^ u((a >> u(13)) | u(a << u(19)))
    s0 = s0 ^ u((a >> u(22)) | u(a << u(10)))
    return u(d + one), u(one + u(s0) + u((a & b) | (c & (a | b))))


@compiled
def _compress(
    state: NDArray[np.uint32],
    block: NDArray[np.uint8],
    words: NDArray[np.uint32],
    rounds: NDArray[np.uint32],
) -> None:
    """Put one block into the state. The casts keep numba from widening to 64 bits."""
    u, at = np.uint32, np.uint64
    for i in range(at(16)):
        words[i] = u(
            (u(block[at(4) * i]) << u(24))
            | (u(block[at(4) * i + at(1)]) << u(16))
            | (u(block[at(4) * i + at(2)]) << u(8))
            | u(block[at(4) * i + at(3)])
        )
    for i in range(at(16), at(64)):
        x, y = words[i - at(15)], words[i - at(2)]
        s0 = u((x >> u(7)) | u(x << u(25))) ^ u((x >> u(18)) | u(x << u(14))) ^ u(x >> u(3))
        s1 = u((y >> u(17)) | u(y << u(15))) ^ u((y >> u(19)) | u(y << u(13))) ^ u(y >> u(10))
        words[i] = u(words[i - at(16)] + u(s0) + words[i - at(7)] + u(s1))
        words[i - at(16)] = u(words[i - at(16)] + rounds[i - at(16)])
    for i in range(at(48), at(64)):
        words[i] = u(words[i] + rounds[i])
    a, b, c, d = state[0], state[1], state[2], state[3]
    e, f, g, h = state[4], state[5], state[6], state[7]
    # Eight rounds at a time: the names move instead of the values.
    for i in range(at(0), at(64), at(8)):
        d, h = _round(a, b, c, d, e, f, g, h, words[i])
        c, g = _round(h, a, b, c, d, e, f, g, words[i + at(1)])
        b, f = _round(g, h, a, b, c, d, e, f, words[i + at(2)])
        a, e = _round(f, g, h, a, b, c, d, e, words[i + at(3)])
        h, d = _round(e, f, g, h, a, b, c, d, words[i + at(4)])
        g, c = _round(d, e, f, g, h, a, b, c, words[i + at(5)])
        f, b = _round(c, d, e, f, g, h, a, b, words[i + at(6)])
        e, a = _round(b, c, d, e, f, g, h, a, words[i + at(7)])
    state[0], state[1] = u(state[0] + a), u(state[1] + b)
    state[2], state[3] = u(state[2] + c), u(state[3] + d)
    state[4], state[5] = u(state[4] + e), u(state[5] + f)
    state[6], state[7] = u(state[6] + g), u(state[7] + h)


@compiled
def _close(
    state: NDArray[np.uint32],
    block: NDArray[np.uint8],
    used: int,
    num_bytes: int,
    words: NDArray[np.uint32],
    rounds: NDArray[np.uint32],
) -> None:
    """Put the last bytes of a message into the state, padded, with the message's length."""
    block[used] = 0x80
    block[used + 1 :] = 0
    if used >= 56:  # no room for the length
        _compress(state, block, words, rounds)
        block[:] = 0
    bits = np.uint64(8 * num_bytes)
    for place in range(8):
        block[63 - place] = np.uint8(bits & np.uint64(255))
        bits >>= np.uint64(8)
    _compress(state, block, words, rounds)


@compiled
def _digest(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    prefix: NDArray[np.uint8],
    bytes_before: int,
    inner: NDArray[np.uint32],
    outer: NDArray[np.uint32],
    rounds: NDArray[np.uint32],
    digests: NDArray[np.uint32],
) -> None:
    """Fill the digests: from the state `inner` on, and once more from `outer` if there is one."""
    words, block = np.empty(64, np.uint32), np.empty(64, np.uint8)
    for row in range(len(digests)):
        state = digests[row]
        state[:] = inner
        used = 0
        for letter in prefix:
            block[used] = letter
            used += 1
            if used == 64:
                _compress(state, block, words, rounds)
                used = 0
        for place in range(offsets[row], offsets[row + 1]):
            block[used] = data[place]
            used += 1
            if used == 64:
                _compress(state, block, words, rounds)
                used = 0
        length = bytes_before + len(prefix) + offsets[row + 1] - offsets[row]
        _close(state, block, used, length, words, rounds)
        if len(outer):
            for place in range(8):
                for byte in range(4):
                    block[4 * place + byte] = np.uint8(
                        (state[place] >> np.uint32(24 - 8 * byte)) & np.uint32(255)
                    )
            state[:] = outer
            _close(state, block, 32, 64 + 32, words, rounds)


@compiled
def _hexadecimal(
    digests: NDArray[np.uint32], digits: NDArray[np.uint8], shown: NDArray[np.uint8]
) -> None:
    for row in range(len(shown)):
        for place in range(shown.shape[1]):
            word = digests[row, place // 8]
            shown[row, place] = digits[(word >> np.uint32(28 - 4 * (place % 8))) & np.uint32(15)]

"""Compiled column work: the hashes are hashlib's and hmac's, the order is that of the bytes."""

import hashlib
import hmac
import random

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecgfounder_train.core.pseudonyms import Secret
from ecgfounder_train.core.sha256 import hmac_hexdigits, sha256_numbers
from ecgfounder_train.core.text_order import text_order

ANY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=200), max_size=30)


@ANY
@given(TEXTS)
def test_numbers_are_the_first_bits_of_sha256(texts: list[str | None]) -> None:
    expected = [
        text if text is None else int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
        for text in texts
    ]
    assert sha256_numbers(pl.Series(texts, dtype=pl.String)).to_list() == expected


@ANY
@given(TEXTS, st.binary(max_size=64), st.binary(max_size=150))
def test_digits_are_those_of_hmac(texts: list[str | None], secret: bytes, prefix: bytes) -> None:
    expected = [
        text
        if text is None
        else hmac.new(secret, prefix + text.encode(), hashlib.sha256).hexdigest()[:32]
        for text in texts
    ]
    series = pl.Series(texts, dtype=pl.String)
    assert hmac_hexdigits(secret, prefix, series, 32).to_list() == expected


def test_padding_is_right_at_every_length_around_the_blocks() -> None:
    texts = ["x" * length for length in range(200)]
    secret = Secret(bytes(range(32)))
    keys = secret.record_keys("heedb", pl.Series(texts))
    assert keys.to_list() == [secret.record_key("heedb", text) for text in texts]
    numbers = sha256_numbers(pl.Series(texts)).to_list()
    assert numbers == [
        int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts
    ]


def test_slices_of_many_rows_come_back_in_their_order() -> None:
    texts = pl.Series(["a", "b", "c"] * 200_000)
    assert hmac_hexdigits(b"k", b"", texts, 8).equals(
        texts.replace_strict(
            {
                letter: hmac.new(b"k", letter.encode(), hashlib.sha256).hexdigest()[:8]
                for letter in "abc"
            }
        )
    )


@ANY
@given(st.lists(st.none() | st.text("ab\0é/", max_size=40), max_size=300), st.text(max_size=12))
def test_texts_are_ordered_by_their_bytes_nulls_first(texts: list[str | None], head: str) -> None:
    series = pl.Series([text if text is None else head + text for text in texts], dtype=pl.String)
    rows = text_order(series)
    assert sorted(rows.tolist()) == list(range(len(texts)))
    ordered = series.gather(pl.Series(rows)).to_list()
    missing = series.null_count()
    assert ordered[:missing] == [None] * missing
    named = [text for text in series.to_list() if text is not None]
    assert ordered[missing:] == sorted(named, key=str.encode)


def test_many_texts_that_share_long_heads_are_ordered() -> None:
    rng = random.Random(0)
    texts = pl.Series(
        [f"ECG/S{rng.randrange(3)}/19{rng.randrange(70, 99)}/de_{rng.randrange(10**6)}" * 2
         for _ in range(30_000)]
    )  # fmt: skip
    assert texts.gather(pl.Series(text_order(texts))).equals(texts.sort())

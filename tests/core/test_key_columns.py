"""Keys and hashes of whole columns are those of hmac and hashlib, one by one."""

import hashlib
import hmac

import polars as pl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecgfounder_train.catalog.patients import patient_hashes
from ecgfounder_train.core.pseudonyms import Secret

ANY = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=200), max_size=30)


@ANY
@given(TEXTS)
def test_patient_hashes_are_the_first_bits_of_sha256(texts: list[str | None]) -> None:
    expected = [
        text if text is None else int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
        for text in texts
    ]
    assert patient_hashes(pl.Series("id", texts, dtype=pl.String)).to_list() == expected


@ANY
@given(TEXTS, st.binary(max_size=64), st.text(max_size=20))
def test_keys_of_a_column_are_those_of_hmac(
    texts: list[str | None], secret: bytes, source: str
) -> None:
    message = f"record\0{source}\0"
    expected = [
        text
        if text is None
        else hmac.new(secret, (message + text).encode(), hashlib.sha256).hexdigest()[:32]
        for text in texts
    ]
    keys = Secret(secret).record_keys(source, pl.Series("id", texts, dtype=pl.String))
    assert keys.to_list() == expected


def test_a_column_of_many_rows_keeps_its_order() -> None:
    secret = Secret(bytes(range(32)))
    texts = pl.Series("id", ["a", "b", None] * 200_000)
    known = {letter: secret.patient_key("heedb", letter) for letter in "ab"}
    assert secret.patient_keys("heedb", texts).equals(texts.replace_strict(known, default=None))

"""What HEEDB 5.0 is known to hold, site by site: a report puts what was found beside it.

Source: printed output of public programs that read the archive; other figures are absent.
"""

from collections.abc import Mapping

PUBLISHED: Mapping[str, Mapping[str, int]] = {
    "I0001": {
        "rows": 10_608_417,
        "patients": 1_818_247,
        "patient_id_blank": 0,
        "acquisition_rows": 10_608_415,
        "over_read_missing": 2_004_991,
        "v24_rows": 10_471_531,
        "v24_rows_empty": 0,
        "v24_newline_in_file_name": 10_471_531,
    },
    "I0006": {
        "rows": 998_844,
        "patients": 349_547,
        "patient_id_blank": 1,
        "acquisition_rows": 998_844,
        "over_read_missing": 999,
        "v24_rows": 974_172,
        "v24_rows_empty": 5_492,
        "v24_newline_in_file_name": 0,
    },
}
"""Counts by site. Over-reads are published as shares (81.1 % and 99.9 % present), so those two
are right to a few thousand; readers of that table report a newline in every v24 row of I0001."""

DICTIONARY_CODES = 503

"""ICD-9-CM codes of cardiac and kidney disease as ICD-10-CM prefixes, or refused by name.

Source: the General Equivalence Mappings of CMS (2018), at the level of the groups of
`configs/task/icd_cardiac.yaml`; `icd9_to_icd10.csv` holds all that is translated.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from ecgfounder_train.core.errors import UserError


@lru_cache
def _table() -> dict[str, tuple[str, ...]]:
    path = Path(__file__).with_name("icd9_to_icd10.csv")
    with open(path, newline="", encoding="utf-8") as handle:
        return {row["icd9"]: tuple(row["icd10"].split("|")) for row in csv.DictReader(handle)}


def is_icd9(code: str) -> bool:
    """Return whether a code without its dot is of ICD-9: ICD-10's begin with a letter."""
    return code[:1].isdigit()


def with_icd10(code: str) -> tuple[str, ...]:
    """Return a code without its dot and, of an ICD-9 code, the ICD-10 prefixes of its group."""
    if not is_icd9(code):
        return (code,)
    longest = max((p for p in _table() if code.startswith(p)), key=len, default="")
    return (code, *_table().get(longest, ()))


def check_profiles(profiles: Mapping[str, Sequence[str]], codes: Iterable[str]) -> None:
    """Refuse ICD-9 codes where a profile has prefixes that no ICD-9 code is translated to.

    Such a profile would be negative in every patient whose codes are of ICD-9. One that names
    ICD-9 prefixes itself is taken as it is.

    Raises:
        UserError: A prefix of a profile has no ICD-9 counterpart here.
    """
    found = next((code for code in codes if is_icd9(code)), None)
    if found is None:
        return
    reached = [target for targets in _table().values() for target in targets]
    for name, prefixes in profiles.items():
        if any(map(is_icd9, prefixes)):
            continue
        for prefix in prefixes:
            if not any(target.startswith(prefix) for target in reached):
                raise UserError(
                    f"task.codes_column holds ICD-9 codes (such as {found}), and no ICD-9 code is "
                    f"translated to {prefix} of task.profiles.{name}: its patients would count as "
                    f"negative. Add the profile's ICD-9 prefixes to task.profiles.{name}, or leave "
                    "the codes of ICD-9 encounters empty."
                )

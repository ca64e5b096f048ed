"""The contributing sites of the data sets whose maps depend on them, by every name they go by."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ecgfounder_train.core.csv_files import read_csv
from ecgfounder_train.core.errors import UserError, did_you_mean

_FILE = Path(__file__).parent / "sites.csv"


def site_key(name: str) -> str:
    """Return a site's name without case and punctuation: `cpsc_2018` is `CPSC2018`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


@lru_cache
def _sites_of(data_set: str) -> tuple[tuple[str, ...], Mapping[str, frozenset[str]]]:
    """Return the names of a data set's sites, and by key the sites that each name may mean."""
    _, rows = read_csv(_FILE, "list of sites")
    rows = [row for row in rows if row["data_set"] == data_set]
    meant: dict[str, frozenset[str]] = {}
    for row in rows:
        parts = frozenset(map(site_key, (row["one_of"] or row["site"]).split("|")))
        for name in (row["site"], *filter(None, row["also_called"].split("|"))):
            meant[site_key(name)] = parts
    return tuple(row["site"] for row in rows), meant


def meant_sites(data_set: str, name: str | None) -> frozenset[str]:
    """Return the keys of the sites that a name may mean; of a data set without a list, the name's.

    Raises:
        UserError: The data set has no such site.
    """
    names, meant = _sites_of(data_set)
    key = site_key(name or "")
    if not names:
        return frozenset({key})
    if key not in meant:
        raise UserError(
            f"The site {name or ''!r} is not one of {data_set}."
            f"{did_you_mean(name or '', names)} The sites are {', '.join(names)}. Their "
            "folders are looked for in the path of each record: source.root is to hold them."
        )
    return meant[key]


def named_site(data_set: str, site: str | None, record_path: str) -> str | None:
    """Return the site as given where it is known, else the deepest folder that is a site's name."""
    _, meant = _sites_of(data_set)
    if not meant or site_key(site or "") in meant:
        return site
    for folder in reversed(PurePosixPath(record_path).parts[:-1]):
        if site_key(folder) in meant:
            return folder
    return site


def check_sites(data_set: str, names: Sequence[str], where: str) -> frozenset[str]:
    """Return the keys of the sites a map's row names.

    Raises:
        UserError: The data set has no such site.
    """
    try:
        return frozenset().union(*(meant_sites(data_set, name) for name in names))
    except UserError as error:
        raise UserError(f"{where}: unobserved_at: {error}") from None

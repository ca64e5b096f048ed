"""One row per recording of a source: labels attached, patients merged, parts assigned."""

from ecgfounder_train.catalog.build import Catalog, build_catalog
from ecgfounder_train.catalog.exclusions import Exclusions, Selection
from ecgfounder_train.catalog.facts import CatalogFacts, read_facts, write_facts
from ecgfounder_train.catalog.files import read_catalog, write_catalog
from ecgfounder_train.catalog.patients import canonical_patients, patient_hashes

__all__ = [
    "Catalog",
    "CatalogFacts",
    "Exclusions",
    "Selection",
    "build_catalog",
    "canonical_patients",
    "patient_hashes",
    "read_catalog",
    "read_facts",
    "write_catalog",
    "write_facts",
]

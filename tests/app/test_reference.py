"""docs/settings.md is what the statements say."""

from ecgfounder_train.app.reference import PAGE, reference_page
from ecgfounder_train.app.sections import GROUPS, VERBS, verb_sections
from ecgfounder_train.core.config import statements


def test_page_of_settings_is_current() -> None:
    made_by = "python -m ecgfounder_train.app.reference"
    assert PAGE.read_text() == reference_page(), f"write it again: {made_by}"


def test_page_has_every_stated_key() -> None:
    page = PAGE.read_text()
    for verb in VERBS:
        for key, *_ in statements(verb_sections(verb)[0]):
            assert f"| `{key}` |" in page, key
    for group, sections in GROUPS.items():
        for _, cls in sections.nodes():
            for key, *_ in statements(cls, f"{group}."):
                assert f"| `{key}` |" in page, key

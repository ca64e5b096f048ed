"""Optional packages (pip extras): an error that names the extra where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager

from ecgfounder_train.core.errors import UserError

EXTRAS = ("formats", "cluster", "remote", "search", "wandb", "export")
"""Extras of pyproject.toml, without `dev`."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Turn a failed import into an error that says which extra to install.

    Args:
        extra: Name of the extra that has the package.
        what: What cannot be done without it, as the subject of a sentence.

    Raises:
        UserError: The package is not installed.
    """
    assert extra in EXTRAS, extra
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ecgfounder_train"):
            raise
        raise UserError(
            f"{what} needs the package {(error.name or '').split('.')[0]}, which is not "
            f"installed: pip install 'ecgfounder_train[{extra}]'"
        ) from error

"""Adds configs/ to the built package; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


def _local(folder: str, names: list[str]) -> set[str]:
    """Return the settings of this machine alone, which git ignores too."""
    return {"local", "local.yaml"} & set(names) if folder == "configs" else set()


class BuildWithConfigs(build_py):
    """A build in which the configuration files are part of the package."""

    def run(self) -> None:
        """Build, then copy configs/ to ecgfounder_train/configs; an editable install reads it."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "ecgfounder_train" / "configs"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("configs", target, ignore=_local)


setup(cmdclass={"build_py": BuildWithConfigs})

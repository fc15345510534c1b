"""Add modules of src/dmoerm to the client; a source distribution already has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """Add the modules that pyproject.toml names to a wheel or a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if not Path(self.root, "PKG-INFO").exists():  # the file that makes a folder a source distribution
            source = Path(self.root).parents[1] / "src" / "dmoerm"
            modules = self.config["modules"]
            build_data["force_include"] |= {str(source / name): f"dmoerm_client/{name}" for name in modules}

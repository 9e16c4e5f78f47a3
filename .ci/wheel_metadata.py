"""Tells the build of the wheel that its dependencies are those of the requirements files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

EXTRAS = ("cluster", "otel")


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata["dependencies"] = self._pins("requirements.txt")
        metadata["optional-dependencies"] = {
            name: self._pins(f"requirements-{name}.txt") for name in EXTRAS
        }

    def _pins(self, name: str) -> list[str]:
        lines = (Path(self.root) / name).read_text("utf-8").splitlines()
        pins = [line.partition("#")[0].strip() for line in lines]
        return [pin for pin in pins if pin and not pin.startswith("-")]

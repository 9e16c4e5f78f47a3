"""Tells the build of the wheel that its dependencies are those of requirements.txt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class CustomMetadataHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        lines = (Path(self.root) / "requirements.txt").read_text("utf-8").splitlines()
        pins = [line.partition("#")[0].strip() for line in lines]
        metadata["dependencies"] = [pin for pin in pins if pin]

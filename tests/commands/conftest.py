"""The fixture of the operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support.operator import Operator


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Operator:
    """The operator of the data folder that ``spawn`` uses."""
    return Operator(tmp_path / "data", monkeypatch)

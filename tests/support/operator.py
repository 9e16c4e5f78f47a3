"""The operator, who runs commands on a data folder."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from server import command_line, logs

from .engine import engine_variables


def exit_status(argv: Sequence[str]) -> int:
    """Run the command line in this process. Returns its exit status."""
    try:
        return command_line.main(argv)
    except SystemExit as ended:  # raised by argparse, for example for --help
        return int(ended.code or 0)


class Operator:
    """Runs commands on a data folder, in this process, which is faster than new processes."""

    def __init__(self, data_dir: Path, patch: pytest.MonkeyPatch) -> None:
        self.data_dir = data_dir
        self._patch = patch

    async def run(self, *argv: str, status: int = 0, **variables: str) -> tuple[str, str]:
        """Run a command, which must exit with *status*. Returns its stdout and stderr."""
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
        with (
            self._patch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(logs, "set_up", lambda settings: None)
            patch.chdir(self.data_dir.parent)  # without a developer's .env
            own = {"DATA_DIR": str(self.data_dir), **engine_variables(self.data_dir)}
            for name, value in {**own, **variables}.items():
                patch.setenv(f"CLAWDFORGE_{name}", value)
            ended = await asyncio.to_thread(exit_status, argv)
        out.seek(0)
        text = out.read()
        assert ended == status, (argv, text, err.getvalue())
        return text, err.getvalue()

"""The command ``doctor``."""

from __future__ import annotations

import json
import socket
from pathlib import Path

from server.commands.doctor import check_machine
from server.config import Settings

from ..storage.test_import_v02 import make
from ..support.engine import only_sqlite
from ..support.operator import Operator


@only_sqlite
async def test_doctor_reports_failed_checks(operator: Operator, tmp_path: Path) -> None:
    out, _ = await operator.run("doctor", CLAUDE_BIN="no-such-program", PORT="0")
    found = [line.split(maxsplit=2) for line in out.splitlines() if not line.startswith(" ")]
    marks = {what: mark for mark, what, _ in found if what != "agent"}
    assert marks == {
        **dict.fromkeys(
            ["python", "data", "disk", "database", "port", "node", "acpx", "git", "sandbox"], "ok"
        ),
        "claude": "note",
    }
    assert ["ok", "agent", "demo"] in found

    operator.data_dir.mkdir()
    (operator.data_dir / "clawdforge.db").write_bytes(b"x" * 5000)
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        out, err = await operator.run(
            *("doctor", "--json"), status=1, PORT=str(port), DEFAULT_AGENT="nobody"
        )
    findings = [json.loads(line) for line in out.splitlines()]
    bad = {one["what"]: one for one in findings if one["mark"] == "BAD"}
    assert bad.keys() == {"database", "port", "agent"}
    assert all(one["advice"] for one in bad.values())
    assert "3 checks failed" in err


def test_doctor_accepts_database_that_start_upgrades(tmp_path: Path) -> None:
    def mark() -> str:
        [found] = [
            one for one in check_machine(Settings(data_dir=tmp_path)) if one.what == "database"
        ]
        return found.mark

    database = tmp_path / "clawdforge.db"
    database.touch()  # of a first start that was interrupted
    assert mark() == "ok"
    make(database)
    assert mark() == "note"

"""The logins that are copied into the homes of sandboxes."""

from __future__ import annotations

import json
from pathlib import Path

from server.sandbox.logins import copy_logins


def test_stored_key_of_codex_is_copied_although_a_key_is_set(tmp_path: Path) -> None:
    """codex does not use the variable without a login: `authenticate` has stored one."""
    home, target = tmp_path / "operator", tmp_path / "homes"
    (home / ".codex").mkdir(parents=True)
    target.mkdir()
    login = home / ".codex" / "auth.json"
    login.write_text(json.dumps({"OPENAI_API_KEY": "sk-stored"}))
    copy_logins("codex", home, (target, "own"), {"OPENAI_API_KEY"}, {".codex/auth.json": b""})
    assert not (target / "own" / ".codex" / "auth.json").exists()
    copy_logins("codex", home, (target, "own"), {"OPENAI_API_KEY"})
    assert (target / "own" / ".codex" / "auth.json").read_text() == login.read_text()


def test_login_of_codex_that_rotates_is_not_copied(tmp_path: Path) -> None:
    home, target = tmp_path / "operator", tmp_path / "homes"
    (home / ".codex").mkdir(parents=True)
    target.mkdir()
    tokens = {"OPENAI_API_KEY": None, "tokens": {"refresh_token": "x"}}
    (home / ".codex" / "auth.json").write_text(json.dumps(tokens))
    copy_logins("codex", home, (target, "own"), set())
    assert not (target / "own" / ".codex" / "auth.json").exists()

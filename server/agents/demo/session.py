"""A conversation with its settings, stored as one JSON file in the session's folder."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from pathlib import Path

from .content import describe_block
from .rpc import invalid_params, unknown_session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .rpc import Client, Json
    from .turn import DemoTurn

STATE_FOLDER = ".demo-agent"
MAX_STORED_BLOCK = 100_000  # bytes of JSON
MAX_STORED_MESSAGES = 1_000

# A config option is (name, ACP category, values); a value is (value, name, description).
CONFIG = {
    "mode": (
        "Mode",
        "mode",
        (
            ("ask", "Ask", "Asks before it edits a file or runs a command"),
            ("auto", "Auto", "Edits and runs without asking"),
            ("plan", "Plan", "Only reads: edits nothing, runs nothing"),
        ),
    ),
    "model": (
        "Model",
        "model",
        (
            ("demo", "Demo", "Speaks at a reader's pace"),
            ("demo-fast", "Demo Fast", "The same words, four times as fast"),
        ),
    ),
    "thought_level": (
        "Thinking",
        "thought_level",
        (
            ("brief", "Brief", "One thought before each answer"),
            ("deep", "Deep", "Thinks aloud"),
            ("off", "Off", "No thoughts"),
        ),
    ),
}


def new_id() -> str:
    return os.urandom(16).hex()


def replace_file(path: Path, text: str) -> None:
    """Write by rename: a reader sees the old or the new text; a symbolic link is not followed."""
    new = path.with_name(path.name + ".tmp")
    new.write_text(text, encoding="utf-8", errors="replace")
    new.replace(path)


def session_file(session_id: str, cwd: Path) -> Path:
    return cwd / STATE_FOLDER / f"{session_id}.json"


class DemoSession:
    """One conversation and its settings.

    `data` is the content of its file: `{sessionId, title, updatedAt, config: {id: value}, system,
    name, facts: [text], always: {kind: bool}, messages: [{role, content: [block]}]}`; a role is
    "user" or "agent".
    """

    def __init__(self, session_id: str, cwd: Path, stored: Json | None = None) -> None:
        self.id = session_id
        self.cwd = cwd
        self.turn: DemoTurn | None = None
        self._lock = threading.Lock()
        self.data: Json = {
            "sessionId": session_id,
            "title": None,
            "updatedAt": None,
            "config": {key: values[0][0] for key, (_, _, values) in CONFIG.items()},
            "system": None,
            "name": None,
            "facts": [],
            "always": {},
            "messages": [],
            **(stored or {}),
        }

    @classmethod
    def load(cls, session_id: str, cwd: Path) -> DemoSession:
        """Read a stored session; -32002 if it does not exist or cannot be read."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", session_id):  # it becomes part of a path
            raise unknown_session(session_id)
        try:
            stored = dict(json.loads(session_file(session_id, cwd).read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise unknown_session(f"{session_id} ({error})") from error
        return cls(session_id, cwd, stored)

    def save(self) -> None:
        """Write the file, without fsync: a write survives a kill of the process."""
        self.data["updatedAt"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        path = session_file(self.id, self.cwd)
        try:
            with self._lock:
                if not path.parent.is_dir():
                    path.parent.mkdir(0o700)
                    replace_file(path.parent / ".gitignore", "*\n")
                replace_file(path, json.dumps(self.data, ensure_ascii=False))
        except OSError as error:
            sys.stderr.write(f"demo agent: the conversation is not stored: {error}\n")

    def add_message(self, role: str, content: list[Json]) -> None:
        kept = [
            block
            if len(json.dumps(block)) < MAX_STORED_BLOCK
            else {"type": "text", "text": describe_block(block)}
            for block in content
        ]
        messages = [*self.data["messages"], {"role": role, "content": kept}]
        self.data["messages"] = messages[-MAX_STORED_MESSAGES:]
        self.save()

    def messages_of(self, role: str) -> list[list[Json]]:
        """The messages of one role in order, each a list of content blocks."""
        return [message["content"] for message in self.data["messages"] if message["role"] == role]

    def tokens(self, role: str) -> int:
        """A rough count: one token per four characters."""
        return sum(len(json.dumps(content)) for content in self.messages_of(role)) // 4

    def set_option(self, client: Client, key: str, value: Any) -> None:
        """Change a setting, store it and notify the client."""
        if key not in CONFIG or value not in [known for known, _, _ in CONFIG[key][2]]:
            raise invalid_params(f"{key!r} cannot be {value!r}")
        self.data["config"][key] = value
        self.save()
        if key == "mode":
            client.update(self.id, "current_mode_update", currentModeId=value)
        client.update(self.id, "config_option_update", configOptions=self.config_options())

    def config_options(self) -> list[Json]:
        """`SessionConfigOption[]`: mode, model and thought level."""
        return [
            {
                "id": key,
                "name": name,
                "category": category,
                "type": "select",
                "currentValue": self.data["config"][key],
                "options": [{"value": v, "name": n, "description": d} for v, n, d in values],
            }
            for key, (name, category, values) in CONFIG.items()
        ]

    def modes(self) -> Json:
        """`SessionModeState`: the mode, for clients that do not support config options."""
        modes = [{"id": v, "name": n, "description": d} for v, n, d in CONFIG["mode"][2]]
        return {"currentModeId": self.data["config"]["mode"], "availableModes": modes}

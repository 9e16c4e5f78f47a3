"""The sessions of the mock agent, which survive its process."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from .wire import Json, RpcError, agent_state, flags, send_update

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from typing import Any

    from .turns import Turn
else:
    Any = object

CONFIG = {"model": ("mock-small", "mock-large"), "thought_level": ("low", "high")}
MODES = ("ask", "code")


def modes() -> tuple[str, ...]:
    return ("auto", *MODES) if "auto" in flags else MODES


def first_settings() -> Json:
    return {"mode": modes()[0], "config": {key: values[0] for key, values in CONFIG.items()}}


class Session:
    """One conversation. `data` is what its file tells:

    `{prompts: [text], messages: [{role, text}], params, mode, config}`

    The first line of the file has all of it, as it was saved last. Each further line has one value
    that was added since, so that a turn of a long conversation takes no longer than the first.
    """

    def __init__(self, session_id: str, cwd: str, data: Json) -> None:
        self.id = session_id
        self.cwd = cwd
        self.data = data
        self.turn: Turn | None = None
        self._lock = threading.Lock()  # a setting may be stored during a turn

    @classmethod
    def new(cls, params: Json) -> Session:
        data = {"prompts": [], "messages": [], "params": params, **first_settings()}
        session = cls(os.urandom(16).hex(), params["cwd"], data)
        session.save()
        return session

    @classmethod
    def load(cls, session_id: str, cwd: str) -> Session:
        try:
            saved, *added = state_file(session_id, cwd).read_bytes().splitlines()
        except OSError as error:
            raise RpcError(-32002, "Resource not found", str(error)) from error
        data = json.loads(saved)
        for line in added:
            name, value = json.loads(line)
            data[name].append(value)
        return cls(session_id, cwd, data)

    def save(self) -> None:
        path = state_file(self.id, self.cwd)
        new = path.with_suffix(".tmp")
        with self._lock:
            if not path.parent.is_dir():
                path.parent.mkdir(parents=True, exist_ok=True)
                (path.parent / ".gitignore").write_text("*\n")
            new.write_text(json.dumps(self.data) + "\n")
            new.replace(path)

    def add(self, name: str, value: Any) -> None:
        """Store another one of the `prompts` or `messages`."""
        with self._lock:
            self.data[name].append(value)
            with state_file(self.id, self.cwd).open("a") as file:
                file.write(json.dumps([name, value]) + "\n")

    def settings(self) -> Json:
        """The `modes` and `configOptions` of a result, with --modes."""
        if "modes" not in flags:
            return {}
        settings: Json = {"configOptions": self.config_options()}
        if "options-only" not in flags:
            offered = [{"id": mode, "name": mode.capitalize()} for mode in modes()]
            settings["modes"] = {"currentModeId": self.data["mode"], "availableModes": offered}
        if "models" in flags:
            models = [{"modelId": name, "name": name} for name in CONFIG["model"]]
            current = self.data["config"]["model"]
            settings["models"] = {"currentModelId": current, "availableModels": models}
        return settings

    def config_options(self) -> list[Json]:
        config = {**self.data["config"], "mode": self.data["mode"]}
        offered = {**CONFIG, "mode": modes()}
        switch = {"id": "verbose", "name": "Verbose", "type": "boolean"}
        switches = [{**switch, "currentValue": bool(config.get("verbose"))}]
        left_out = ("model" if "models" in flags else "", "" if "options-only" in flags else "mode")
        return [
            {
                "id": key,
                "name": key.replace("_", " ").capitalize(),
                "category": key,
                "type": "select",
                "currentValue": config[key],
                "options": [{"value": value, "name": value} for value in values],
            }
            for key, values in offered.items()
            if key not in left_out
        ] + (switches if has_switches() else [])

    def set_mode(self, mode: str) -> None:
        self.data["mode"] = mode
        self.save()
        send_update(self.id, {"sessionUpdate": "current_mode_update", "currentModeId": mode})


def has_switches() -> bool:
    capabilities = (agent_state["initialize"] or {}).get("clientCapabilities", {})
    announced = capabilities.get("session", {}).get("configOptions", {}).get("boolean")
    return "boolean" in flags and announced is not None


def state_file(session_id: str, cwd: str) -> Path:
    folder = os.environ.get("MOCK_STATE_DIR") or Path(cwd) / ".mock-agent"
    return Path(folder) / f"{Path(session_id).name}.json"

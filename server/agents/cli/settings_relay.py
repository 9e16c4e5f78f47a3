"""A program between acpx and an agent, which puts the agent into the settings of its session.

acpx loads a session and immediately sends its prompt, in the mode in which the agent begins. This
program passes all data on, in both directions. Before it passes a prompt on, it sets what the
session wants and the agent has not. If that fails, it responds to the prompt with an error, and the
agent does not receive the prompt.

``restrict.py`` becomes this program if the plan of the agent's sandbox has ``relay``. The program
starts ``restrict.py`` again, which becomes the agent. It is outside of the sandbox, as acpx is, and
reads the wanted settings from the plan at each prompt: ``settings`` is a :class:`RelaySettings`.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ...codec import dumps, parse_message, parse_rpc
from ...sandbox.levels import RESTRICT
from ...sandbox.restrict import PR_SET_PDEATHSIG, RELAYED, control
from ...validation import OptionValue
from ..failures import error_text
from ..line_reader import LineReader
from ..setting_steps import SettingStep
from .relayed_settings import RelayedSettings, RelaySettings

RELAY_COMMAND = (
    *(sys.executable, "-I", "-c"),
    f"import sys; sys.path.insert(0, {str(Path(__file__).parents[3])!r});"
    " from server.agents.cli.settings_relay import main; main()",
)
"""The program's command; a plan and the agent's command follow."""
REPORT = "_clawdforge/settings"
"""The notification with which the program reports what it has set, before it passes a prompt on."""
REQUEST_OF_RELAY = "clawdforge-%d"
"""The id of a request of this program. acpx's ids are numbers."""
FIRST = "first-settings.json"
"""The file, beside the plan, with what the agent reported when its session was made."""
MAX_SET_TRIES = 2
"""Requests for one setting before a prompt: a request for another may have changed it back."""
MAX_RELAYED_BYTES = 16 << 20
"""Bytes of a message that the program reads. A longer one is passed on unread."""
REFUSAL_CODE = -32602
_UPDATES = (b"current_mode_update", b"config_option_update")


class RefusedError(Exception):
    """The agent cannot be put into the wanted settings. The first argument is an error code."""


class SettingsRelay:
    """Passes data on between acpx and one agent process.

    Args:
        plan: the file of the sandbox's plan.
        agent: the agent's process.
    """

    def __init__(self, plan: Path, agent: subprocess.Popen[bytes]) -> None:
        self._plan = plan
        self._agent = agent
        self._settings = RelayedSettings()
        self._responses: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._is_setting = False
        self._own_ids: set[str] = set()
        self._to_acpx = threading.Lock()  # held in the middle of a line

    # From acpx to the agent.

    def relay_input(self) -> None:
        """Pass on what acpx writes, to its end."""
        assert self._agent.stdin is not None
        try:
            for line in sys.stdin.buffer:
                if self._may_pass(line):
                    self._write_to_agent(line)
            self._agent.stdin.close()
        except OSError:
            pass  # the agent has ended, which the other thread notices

    def _may_pass(self, line: bytes) -> bool:
        message = _message_in(line)
        if message.get("method") != "session/prompt":
            self._settings.note_request(message)
            return True
        settings = self._read_settings()
        if settings is None:
            return True
        try:
            self._apply(settings)
        except RefusedError as refusal:
            code, reason = refusal.args
            data = {"mark": settings.mark, "code": code}
            error = {"code": REFUSAL_CODE, "message": reason, "data": data}
            self._write_to_acpx({"id": message.get("id"), "error": error})
            return False
        return True

    def _read_settings(self) -> RelaySettings | None:
        stored = self._read(self._plan.name).get("settings")
        return msgspec.convert(stored, RelaySettings) if stored else None

    def _read(self, name: str) -> dict[str, Any]:
        """Return the object in a file beside the plan; an empty one without the file."""
        try:
            return parse_message(self._plan.with_name(name).read_bytes()) or {}
        except OSError:
            return {}

    def _apply(self, settings: RelaySettings) -> None:
        """Set one setting after the other, until the agent is in all wanted settings.

        Raises:
            RefusedError: the agent refuses a setting, or does not have it.
        """
        tries: Counter[tuple[str, OptionValue]] = Counter()
        replayed = self._settings.take_replayed()
        while steps := self._settings.steps(settings, self._read(FIRST)):
            step = steps[0]
            if step.method is None:
                raise self._refusal(step, settings, "it offers no such value")
            if tries[step.key] == MAX_SET_TRIES:
                raise self._refusal(step, settings, "it says that it is in another")
            tries[step.key] += 1
            if not self._set(step, settings):
                return
        reported = self._settings.reported.to_dict()
        params = {"mark": settings.mark, "set": [*replayed, *tries], "reported": reported}
        self._write_to_acpx({"method": REPORT, "params": params})

    def _set(self, step: SettingStep, settings: RelaySettings) -> bool:
        """Have the agent set one setting. Return False if it ends before it responds."""
        assert step.method is not None
        self._settings.begin_set()
        try:
            response = self._request(step.method, step.params, settings.secs)
        except queue.Empty:
            raise RefusedError(
                "agent_failed",
                f"{step.setting}: the agent did not answer when it was set to {step.value!r}",
            ) from None
        if response is None:
            return False
        result = response.get("result")
        if not isinstance(result, dict):
            reason = error_text(response.get("error")) or "it refused"
            raise self._refusal(step, settings, reason)
        self._settings.note_set(step.method, step.params, result)
        self._settings.note_synonym(step)
        return True

    def _refusal(self, step: SettingStep, settings: RelaySettings, reason: str) -> RefusedError:
        was_in_force = self._settings.was_in_force(step, settings)
        return RefusedError(
            "agent_failed" if was_in_force else "bad_request",
            f"{step.setting}: the agent cannot be put into {step.value!r}: {reason}",
        )

    def _request(
        self, method: str, params: Mapping[str, Any], secs: float
    ) -> dict[str, Any] | None:
        """Send the agent a request, and return its response; None if it has ended.

        Raises:
            queue.Empty: the agent does not respond.
        """
        request_id = REQUEST_OF_RELAY % (len(self._own_ids) + 1)
        self._own_ids.add(request_id)
        in_session = {"sessionId": self._settings.session_id, **params}
        request = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": in_session}
        self._is_setting = True
        try:
            self._write_to_agent(dumps(request) + b"\n")
            while (response := self._responses.get(timeout=secs)) is not None:
                if response["id"] == request_id:
                    return response
            return None
        except OSError:
            return None
        finally:
            self._is_setting = False

    def _write_to_agent(self, data: bytes) -> None:
        assert self._agent.stdin is not None
        self._agent.stdin.write(data)
        self._agent.stdin.flush()

    # From the agent to acpx.

    def relay_output(self) -> None:
        """Pass on what the agent writes, until it ends or closes its stdout."""
        assert self._agent.stdout is not None
        source, ended = self._agent.stdout.fileno(), os.pidfd_open(self._agent.pid)
        lines = LineReader(MAX_RELAYED_BYTES)
        is_amid_line = False
        while source in select.select([source, ended], [], [])[0]:
            data = os.read(source, 1 << 16)
            if not data:
                break
            if is_amid_line:
                rest, end, data = data.partition(b"\n")
                _write(rest + end)
                if not end:
                    continue
                is_amid_line = False
                self._to_acpx.release()
            before = lines.rest if lines.size + len(data) > MAX_RELAYED_BYTES else b""
            try:
                kept = [line for line in lines.feed(data) if self._is_for_acpx(line)]
            except OverflowError:
                self._to_acpx.acquire()
                is_amid_line = True
                _write(before + data)
                continue
            with self._to_acpx:
                _write(b"".join([line + b"\n" for line in kept]))
        with self._to_acpx:
            _write(lines.rest)

    def _is_for_acpx(self, line: bytes) -> bool:
        """Note what a line of the agent says. Return whether acpx gets it."""
        settings = self._settings
        if (self._is_setting or settings.is_awaiting) and b'"id"' in line:
            message = _message_in(line)
            if "id" in message and "method" not in message:
                if self._is_own(message):
                    self._responses.put(message)
                    return False
                if settings.note_response(message) == "session/new":
                    # acpx ends this process, and loads the session for its first prompt.
                    reported = dumps(settings.reported.to_dict())
                    self._plan.with_name(FIRST).write_bytes(reported)
        if any(kind in line for kind in _UPDATES):
            settings.note_update(_message_in(line))
        return True

    def _is_own(self, message: Mapping[str, Any]) -> bool:
        """Whether a response is to one of the program's own requests."""
        request_id = message.get("id")
        return isinstance(request_id, str) and request_id in self._own_ids

    def _write_to_acpx(self, message: Mapping[str, Any]) -> None:
        with self._to_acpx:
            _write(dumps({"jsonrpc": "2.0", **message}) + b"\n")

    def agent_ended(self) -> None:
        """Note that no request gets a response any more."""
        self._responses.put(None)


def _message_in(line: bytes) -> dict[str, Any]:
    """The JSON-RPC message in *line*; empty if there is none that is short enough."""
    try:
        return parse_rpc(line) or {}
    except OverflowError:
        return {}


def _write(data: bytes) -> None:
    """Write all of *data* to acpx.

    Raises:
        OSError: acpx has ended.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _start_agent() -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def die_with_parent() -> None:
        control(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(RESTRICT), *sys.argv[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, RELAYED: "1"},
        preexec_fn=die_with_parent,
    )


def main() -> NoReturn:
    """Run the agent, and end as it ends."""
    agent = _start_agent()
    signal.signal(signal.SIGTERM, lambda *_: agent.terminate())
    relay = SettingsRelay(Path(sys.argv[1]), agent)
    threading.Thread(target=relay.relay_input, daemon=True).start()
    try:
        relay.relay_output()
        os.close(1)
    except OSError:  # acpx has ended
        agent.kill()
    relay.agent_ended()
    status = agent.wait()
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status if status >= 0 else 128 - status)

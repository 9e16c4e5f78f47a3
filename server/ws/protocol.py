"""The session protocol: the commands that a client sends and the frames that it receives.

A frame is one JSON object in one WebSocket text message. Log entries are frames, too; they come
ready-made from the session's log. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from ..codec import dumps, loads_bounded, parse_message
from ..errors import CloseCode, Error, ErrorCode
from ..sessions.content import MAX_FILES
from ..sessions.elicitations import Action
from ..sessions.entries import error_fields
from ..sessions.settings import SetConfigOption, SetMode, SetModel, Setting
from ..validation import ClientId, Name, OptionValue, in_words

PROTOCOL = 1
"""The version of the protocol."""


class _Command(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """A frame that a client sends; the tag of its class is the frame's ``type``.

    Attributes:
        id: chosen by the client. If it is a string, an ``error`` frame repeats it.
    """

    id: Any = None


class AuthCommand(_Command, frozen=True, tag="auth"):
    token: str | None = None
    ticket: str | None = None
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None
    protocol: int = PROTOCOL


class PromptCommand(_Command, frozen=True, kw_only=True, tag="prompt"):
    prompt: str | list[Any]
    id: ClientId | None = None
    files: Annotated[list[str], msgspec.Meta(max_length=MAX_FILES)] | None = None
    steer: bool = False


class CancelCommand(_Command, frozen=True, tag="cancel"):
    turn_index: Annotated[int, msgspec.Meta(ge=1)] | None = None


class QueueCommand(_Command, frozen=True, kw_only=True, tag="queue"):
    turn_index: Annotated[int, msgspec.Meta(ge=1)]
    prompt: str | list[Any] | None = None
    before: Annotated[int, msgspec.Meta(ge=1)] | None = None


class PermissionCommand(_Command, frozen=True, kw_only=True, tag="permission"):
    request_id: str
    option_id: str | None = None
    outcome: Literal["cancelled"] | None = None


class ElicitationCommand(_Command, frozen=True, kw_only=True, tag="elicitation"):
    request_id: str
    action: Action
    content: dict[str, Any] | None = None


class SetModeCommand(_Command, frozen=True, kw_only=True, tag="set_mode"):
    mode: Name

    @property
    def setting(self) -> Setting:
        return SetMode(self.mode)


class SetModelCommand(_Command, frozen=True, kw_only=True, tag="set_model"):
    model: Name

    @property
    def setting(self) -> Setting:
        return SetModel(self.model)


class SetConfigOptionCommand(_Command, frozen=True, kw_only=True, tag="set_config_option"):
    key: Name
    value: OptionValue

    @property
    def setting(self) -> Setting:
        return SetConfigOption(self.key, self.value)


class CloseCommand(_Command, frozen=True, tag="close"):
    pass


class PingCommand(_Command, frozen=True, tag="ping"):
    pass


class SubscribeCommand(_Command, frozen=True, kw_only=True, tag="subscribe"):
    session_id: str
    after: Annotated[int, msgspec.Meta(ge=0)] | None = None


class UnsubscribeCommand(_Command, frozen=True, kw_only=True, tag="unsubscribe"):
    session_id: str


SettingCommand = SetModeCommand | SetModelCommand | SetConfigOptionCommand
SessionCommand = (
    PromptCommand
    | CancelCommand
    | QueueCommand
    | PermissionCommand
    | ElicitationCommand
    | SettingCommand
    | CloseCommand
    | PingCommand
)
Command = AuthCommand | SessionCommand
"""The frames that a client sends on a session's socket."""
OnlyAppCommand = SubscribeCommand | UnsubscribeCommand
AppCommand = Command | OnlyAppCommand
"""The frames that a client sends on the socket for many sessions."""


class MalformedFrameError(Exception):
    """The text is not a JSON object, so no field of it can be named."""


class InvalidCommandError(Error):
    """A JSON object that is not a command of the protocol.

    Attributes:
        frame_id, session_id: the frame's ``id`` and ``session_id``, of any type; None without one.
    """

    def __init__(self, message: str, frame: Mapping[str, Any]) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, message)
        self.frame_id = frame.get("id")
        self.session_id = frame.get("session_id")


def parse_command(data: bytes | str) -> Command:
    """Read one frame of a client.

    Raises:
        MalformedFrameError: *data* is not a JSON object, or is nested too deeply.
        InvalidCommandError: ``bad_request``; the type is unknown or a field is invalid.
    """
    command: Command = _command_of(_read_object(data), Command)
    return command


def parse_addressed(data: bytes | str) -> tuple[Any, AppCommand]:
    """Read one frame of a client on the socket for many sessions.

    Returns:
        The frame's ``session_id``, which may have any type, and its command.

    Raises:
        MalformedFrameError, InvalidCommandError: as :func:`parse_command`.
    """
    value = _read_object(data)
    command: AppCommand = _command_of(value, AppCommand)
    return value.get("session_id"), command


def _read_object(data: bytes | str) -> dict[str, Any]:
    try:
        value = loads_bounded(data)
    except ValueError:
        raise _unreadable(data) from None
    if not isinstance(value, dict):
        raise MalformedFrameError
    return value


def _command_of(value: dict[str, Any], kind: Any) -> Any:
    try:
        command = msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise InvalidCommandError(in_words(error), value) from None
    if isinstance(command, PermissionCommand) and (
        (command.option_id is None) == (command.outcome is None)
    ):
        raise InvalidCommandError("one of option_id and outcome is needed", value)
    if isinstance(command, QueueCommand) and command.prompt is None and command.before is None:
        raise InvalidCommandError("prompt or before is needed", value)
    return command


def _unreadable(data: bytes | str) -> Exception:
    """The error for *data* that the codec rejects.

    Browsers write an unpaired surrogate if a text was cut inside an emoji. That is JSON, but it
    cannot be sent to an agent as UTF-8.
    """
    raw = data.encode() if isinstance(data, str) else data
    value = parse_message(raw) if b"\\ud" in raw.lower() else None
    if value is None:
        return MalformedFrameError()
    return InvalidCommandError("unpaired surrogate in a string", value)


def frame(kind: str, **values: Any) -> bytes:
    """A frame that is not a log entry, such as ``ready`` or ``pong``."""
    return dumps({"type": kind, **values})


def error_frame(error: Error, frame_id: Any = None) -> bytes:
    """An ``error`` frame; it has the ``id`` of the frame that failed if that is a string."""
    named = {"id": frame_id} if isinstance(frame_id, str) else {}
    retry = {} if error.retry_after is None else {"retry_after_ms": 1000 * error.retry_after}
    return frame("error", **named, **error_fields(error), **retry)


def addressed(message: bytes, session_id: str) -> bytes:
    """*message*, a JSON object with a field, with the ``session_id`` of its session."""
    return b'%b,"session_id":"%b"}' % (message[:-1], session_id.encode())


def bye_frame(code: CloseCode, reason: str, retry_after_ms: int | None = None) -> bytes:
    """The ``bye`` frame that precedes a close by the server."""
    retry = {} if retry_after_ms is None else {"retry_after_ms": retry_after_ms}
    return frame("bye", code=int(code), reason=reason, **retry)

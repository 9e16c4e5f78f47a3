"""The methods of ACP that the mock agent has."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from .memory import CONFIG, Session, first_settings, has_switches, modes
from .turns import Turn, script_of
from .wire import (
    Json,
    RpcError,
    agent_state,
    flags,
    replies,
    send,
    send_update,
    text_chunk,
    write,
)

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes time
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object

DEFERRED: Json = {}  # returned by a method whose response follows later
SET_METHODS = ("session/set_mode", "session/set_model", "session/set_config_option")


sessions: dict[str, Session] = {}


def initialize(params: Json, _: Any) -> Json:
    agent_state["initialize"] = params
    rich = "text-only" not in flags
    return {
        "protocolVersion": 1,
        "agentCapabilities": {
            "loadSession": "no-load" not in flags,
            "promptCapabilities": {"image": rich, "audio": rich, "embeddedContext": rich},
            "sessionCapabilities": {
                **{name: {} for name in ("resume", "close", "fork", "delete") if name in flags},
                **({"additionalDirectories": {}} if "directories" in flags else {}),
            },
            **({"mcpCapabilities": {"http": True, "sse": True}} if "mcp" in flags else {}),
            **({"auth": {"logout": {}}} if "login-file" in flags else {}),
        },
        "agentInfo": {"name": "mock-agent", "version": "1"},
        "authMethods": auth_methods(),
        **({"_meta": {"steering": {"supported": True}}} if "steering" in flags else {}),
    }


def auth_methods() -> list[Json]:
    if "login-file" in flags:
        return [
            {"id": "mock-login", "name": "Log in"},
            {"id": "mock-slow", "name": "Wait for a person"},
            {"id": "mock-terminal", "name": "In a terminal", "type": "terminal"},
        ]
    return [{"id": "mock-login", "name": "Log in"}] if "login" in flags else []


def authenticate(params: Json, _: Any) -> Json:
    if "login-file" in flags:
        if params["methodId"] == "mock-slow":
            return DEFERRED
        Path(flags["login-file"]).touch()
    return {}


def log_out(params: Json, _: Any) -> Json:
    Path(flags["login-file"]).unlink(missing_ok=True)
    return {}


def check_login() -> None:
    if "login-file" in flags and not Path(flags["login-file"]).exists():
        raise RpcError(-32000, "Authentication required")


def new_session(params: Json, _: Any) -> Json:
    fail_if("fail-new")
    check_login()
    agent_state["opened"] = ["session/new", params]
    session = Session.new(params)
    return {"sessionId": session.id, **register(session)}


def load_session(params: Json, _: Any) -> Json:
    if "no-load" in flags:
        raise RpcError(-32601, "Method not found")
    return restore_session(params, replay=True)


def resume_session(params: Json, _: Any) -> Json:
    if "resume" not in flags:
        raise RpcError(-32601, "Method not found")
    return restore_session(params, replay=False)


def fork_session(params: Json, _: Any) -> Json:
    if "fork" not in flags:
        raise RpcError(-32601, "Method not found")
    fail_if("fail-fork")
    known = sessions.get(params["sessionId"])
    source = known or Session.load(params["sessionId"], params["cwd"])
    data = json.loads(json.dumps(source.data))
    session = Session(os.urandom(16).hex(), params["cwd"], data)
    session.save()
    return {"sessionId": session.id, **register(session)}


def delete_session(params: Json, _: Any) -> Json:
    if "delete" not in flags:
        raise RpcError(-32601, "Method not found")
    if not flags["delete"]:
        return DEFERRED
    with Path(flags["delete"]).open("a") as file:
        file.write(f"{session_of(params).id}\n")
    return {}


def restore_session(params: Json, *, replay: bool) -> Json:
    fail_if("fail-load")
    check_login()
    agent_state["opened"] = ["session/load" if replay else "session/resume", params]
    session = Session.load(params["sessionId"], params["cwd"])
    for message in session.data["messages"] if replay else ():
        send_update(session.id, text_chunk(f"{message['role']}_message_chunk", message["text"]))
    if "resets" in flags:
        session.data.update(first_settings())
    settings = register(session)
    return {} if "quiet" in flags else settings


def register(session: Session) -> Json:
    sessions[session.id] = session
    return session.settings()


def fail_if(flag: str) -> None:
    if flag in flags:
        message = f"the mock was started with --{flag}"
        raise RpcError(int(flags[flag] or -32603), message, "there is no more to it")


def close_session(params: Json, _: Any) -> Json:
    cancel(params, None)
    del sessions[params["sessionId"]]
    return {}


def set_mode(params: Json, _: Any) -> Json:
    session = session_of(params)
    mode = params["modeId"]
    is_known = "modes" in flags and "options-only" not in flags and mode in modes()
    if not is_known or mode == flags.get("refuse-mode"):
        raise RpcError(-32602, "Invalid params", f"unknown mode {mode}")
    if "hang-mode" in flags:
        return DEFERRED
    session.set_mode(session.data["mode"] if "pretend-mode" in flags else mode)
    return {}


def set_model(params: Json, _: Any) -> Json:
    session = session_of(params)
    if "models" not in flags or params["modelId"] not in CONFIG["model"]:
        raise RpcError(-32602, "Invalid params", f"unknown model {params['modelId']}")
    session.data["config"]["model"] = params["modelId"]
    session.save()
    return {}


def set_config_option(params: Json, _: Any) -> Json:
    session = session_of(params)
    key, value = params["configId"], params["value"]
    offered = {option["id"]: option.get("options", ()) for option in session.config_options()}
    choices = [choice["value"] for choice in offered.get(key, ())]
    if key == "verbose" and has_switches() and params.get("type") == "boolean":
        choices = [True, False]
    if "modes" not in flags or value not in choices:
        raise RpcError(-32602, "Invalid params", f"{key!r} cannot be {value!r}")
    if key == "mode":
        session.data["mode"] = value
    else:
        session.data["config"][key] = value
    if key == "model" and "model-sets-mode" in flags:
        session.set_mode(modes()[0])
    session.save()
    options = session.config_options()
    send_update(session.id, {"sessionUpdate": "config_option_update", "configOptions": options})
    return {"configOptions": options}


def prompt(params: Json, request_id: Any) -> Json:
    session = session_of(params)
    if session.turn is not None:
        raise RpcError(-32600, "Invalid request", "a turn is running in this session")
    session.turn = Turn(session, request_id, params["prompt"])
    session.turn.start()
    return DEFERRED


def steer(params: Json, request_id: Any) -> Json:
    if "steering" not in flags:
        raise RpcError(-32601, "Method not found", "_session/steering")
    session = session_of(params)
    text = "\n".join(block.get("text", f"[{block['type']}]") for block in params["prompt"])
    steps = script_of(text)
    kind = str(steps[0].get("steer", "inject")) if steps else "inject"
    if kind == "refuse":
        raise RpcError(-32602, "Invalid params", "the mock refuses it")
    if kind == "failed":
        return {"outcome": "failed"}
    if kind == "hang":
        return DEFERRED
    if kind == "exit":
        os._exit(3)
    if kind in ("late", "starts") and session.turn is not None:
        session.turn.finish()
    if kind == "starts":
        session.add("prompts", text)
        send_update(session.id, text_chunk("agent_message_chunk", f"by itself: {text}"))
        return {"outcome": "startedNewTurn"}
    if session.turn is None:
        assert params["_meta"]["steering"]["idleBehavior"] == "promptRequired"
        return {"outcome": "promptRequired", "reason": "noRunningTurn"}
    session.add("prompts", text)
    session.turn.say(f"steered: {text}")
    if kind in ("end", "after"):
        turn = session.turn
        turn.is_quiet = True
        turn.finish()
        both = [
            {"jsonrpc": "2.0", "id": request_id, "result": {"outcome": "injected"}},
            {"jsonrpc": "2.0", "id": turn.request_id, "result": {"stopReason": "end_turn"}},
        ]
        lines = both if kind == "end" else both[::-1]
        write("".join(json.dumps(line) + "\n" for line in lines).encode())
        return DEFERRED
    return {"outcome": "injected"}


def cancel(params: Json, _: Any) -> Json:
    if params["sessionId"] not in sessions:  # of a subagent
        send_update(params["sessionId"], text_chunk("agent_message_chunk", "cancelled"))
        return {}
    if (turn := session_of(params).turn) is not None:
        turn.cancel()
    return {}


def session_of(params: Json) -> Session:
    if params["sessionId"] not in sessions:
        raise RpcError(-32002, "Resource not found", params["sessionId"])
    return sessions[params["sessionId"]]


METHODS: dict[str, Callable[[Json, Any], Json]] = {
    "initialize": initialize,
    "authenticate": authenticate,
    "logout": log_out,
    "session/new": new_session,
    "session/load": load_session,
    "session/resume": resume_session,
    "session/fork": fork_session,
    "session/close": close_session,
    "session/delete": delete_session,
    "session/set_mode": set_mode,
    "session/set_model": set_model,
    "session/set_config_option": set_config_option,
    "session/prompt": prompt,
    "session/cancel": cancel,
    "_session/steering": steer,
}


def handle_line(line: bytes) -> None:
    try:
        message = json.loads(line)
    except ValueError:
        send({"id": None, "error": {"code": -32700, "message": "Parse error"}})
        return
    if "method" in message:
        handle_call(message)
    elif (reply := replies.pop(message.get("id"), None)) is not None:
        reply.message = message
        reply.done.set()


def handle_call(message: Json) -> None:
    method, request_id = message["method"], message.get("id")
    try:
        if method not in METHODS:
            raise RpcError(-32601, "Method not found", method)
        params = message.get("params", {})
        if "set-file" in flags and method in SET_METHODS:
            value = next(params[name] for name in ("modeId", "modelId", "value") if name in params)
            with Path(flags["set-file"]).open("a") as file:
                file.write(f"{method.rpartition('/')[2]}={value}\n")
        answer: Json = {"result": METHODS[method](params, request_id)}
    except RpcError as error:
        answer = {"error": error.error}
    except (KeyError, TypeError, AttributeError) as error:
        answer = {"error": {"code": -32602, "message": "Invalid params", "data": repr(error)}}
    if "id" in message and answer.get("result") is not DEFERRED:
        send({"id": request_id, **answer})
    opens = method in ("session/new", "session/load", "session/resume") and "result" in answer
    if "commands" in flags and opens:
        commands = [{"name": "mock", "description": "Does nothing"}]
        update = {"sessionUpdate": "available_commands_update", "availableCommands": commands}
        send_update(answer["result"].get("sessionId") or message["params"]["sessionId"], update)

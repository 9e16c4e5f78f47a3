"""REST as an OpenAPI 3.1 document, made of the shapes that requests are checked with."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from .. import __version__
from ..errors import STATUS
from ..sessions.content import ContentBlock
from . import bodies, shapes
from .operations import JSON, OPERATIONS, Operation

REF = "#/components/schemas/{name}"
ABOUT = """\
The REST interface of clawdforge. `docs/reference/protocol.md` describes the WebSocket interface
and everything that OpenAPI cannot express. New fields may be added to any object, and none is
renamed or removed, so ignore the fields that you do not know.

Every failure is `{"ok": false, "error": "for a person", "code": "for a program"}`.
"""
CODES: Mapping[str, tuple[str, str]] = {
    "bad_request": ("A field is wrong.", "model: must be text or null, not a whole number"),
    "unauthorized": (
        "No valid token.",
        "a valid token is needed: Authorization: Bearer cf_…",
    ),
    "forbidden": (
        "A host name or an origin that is not allowed, or an app's token on the admin's calls.",
        "this needs the admin token",
    ),
    "not_found": ("There is none of that name, or it is another app's.", "no such session"),
    "method_not_allowed": ("The path knows other methods.", "Method Not Allowed"),
    "request_timeout": ("The body came too slowly.", "the body did not arrive in time"),
    "conflict": ("The name is taken.", "the name 'my-bot' is taken"),
    "session_closed": ("The session is closed.", "the session is closed"),
    "payload_too_large": ("The body, or a file, is too large.", "the body is too large"),
    "precondition_failed": (
        "The file is not the one that `If-Match` names.",
        "the file is another one by now",
    ),
    "unsupported_media_type": (
        "The body has a `Content-Encoding`.",
        "a body is sent as it is: no Content-Encoding is supported",
    ),
    "range_not_satisfiable": ("The file has no such range.", "the file has 1024 bytes"),
    "expectation_failed": (
        "The `Expect` header is not `100-continue`.",
        "the only expectation that is supported is 100-continue",
    ),
    "upgrade_required": (
        "Here a WebSocket is spoken.",
        "ACP is spoken over WebSocket here: upgrade to it",
    ),
    "queue_full": (
        "As many prompts wait as may.",
        "8 prompts wait already; ask again when one has run",
    ),
    "rate_limited": ("Too much in too little time.", "too many prompts in a minute"),
    "internal": ("A defect.", "internal error; the server's log has the details"),
    "agent_unavailable": (
        "The agent is not installed, or does not start.",
        "agent 'codex' is not installed: npm install -g @agentclientprotocol/codex-acp@2",
    ),
    "agent_failed": (
        "The agent answered with an error, or its process ended.",
        "the agent ended the turn without an answer",
    ),
    "login_required": (
        "The agent requires a login. `error` gives the command; `auth_methods` is ACP's list.",
        "the agent 'codex' requires a login: run `codex login`, or set OPENAI_API_KEY",
    ),
    "pool_full": ("As much is open, or runs, as may.", "the server has as many sessions as it may"),
    "draining": ("The server is stopping.", "the server is going away; try again in a moment"),
    "server_restarted": (
        "The server stopped while the turn was running.",
        "the server was restarted; ask again",
    ),
    "agent_timeout": ("It took longer than it may.", "the turn took longer than it may"),
}
"""What each code means, and the words of one such failure."""
REQUEST_ID = "5ff2013ce33e4337"

Json = dict[str, Any]


def document(operations: Mapping[tuple[str, str], Operation] = OPERATIONS) -> Json:
    """The whole document."""
    paths: dict[str, Json] = {}
    for (method, path), operation in operations.items():
        paths.setdefault(path, {})[method.lower()] = _operation(method, path, operation)
    tags = dict.fromkeys(operation.tag for operation in operations.values())
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "clawdforge",
            "version": __version__,
            "summary": "A realtime server for coding agents",
            "description": ABOUT,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": ".", "description": "Where this document lies, also under a path."}],
        "tags": [{"name": name} for name in tags],
        "paths": paths,
        "components": {
            "schemas": _schemas(operations),
            "securitySchemes": {
                "app": {"type": "http", "scheme": "bearer", "description": "An app's token."},
                "admin": {"type": "http", "scheme": "bearer", "description": "The operator's."},
            },
        },
    }


def _schemas(operations: Mapping[tuple[str, str], Operation]) -> Json:
    """Every shape that the document refers to, by its name."""
    types: list[Any] = [shapes.Failure, ContentBlock]
    for operation in operations.values():
        named = (operation.body, operation.multipart, operation.answer)
        types += [*(shape for shape in named if shape), *operation.failures.values()]
    found, components = msgspec.json.schema_components(
        dict.fromkeys(types), schema_hook=bodies.describe, ref_template=REF
    )
    return {"ContentBlock": found[1], **components}


def _operation(method: str, path: str, operation: Operation) -> Json:
    words = re.findall(r"\w+", f"{method.lower()} {path}")
    made: Json = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": "_".join(words),
        "parameters": list(_parameters(path, operation)),
        "responses": dict(sorted(_responses(path, operation).items())),
        "security": [
            *([{operation.auth: []}] if operation.auth else []),
            *([{}] if operation.auth_later else []),
        ],
    }
    if operation.about:
        made["description"] = operation.about
    if operation.body is not None:
        needs = any(field.required for field in msgspec.structs.fields(operation.body))
        content: Json = {"schema": _ref(operation.body), "example": operation.request}
        made["requestBody"] = {"required": needs, "content": {JSON: content}}
    if operation.multipart is not None:
        content = {"schema": _ref(operation.multipart)}
        made["requestBody"] = {"required": True, "content": {"multipart/form-data": content}}
    return made


def _parameters(path: str, operation: Operation) -> Iterator[Json]:
    for name in re.findall(r"{(\w+)}", path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for place, shape in (("query", operation.query), ("header", operation.headers)):
        if shape is None:
            continue
        schema = msgspec.json.schema(shape, schema_hook=bodies.describe)
        for name, value in schema["$defs"][shape.__name__]["properties"].items():
            yield {"name": name, "in": place, **_parameter(value)}


def _parameter(schema: Json) -> Json:
    """A parameter's schema; what may be null in a body is a parameter that may be left out."""
    schema = dict(schema)
    about = schema.pop("description", None)
    if schema.get("default", ...) is None:
        del schema["default"]
        others = [one for one in schema.pop("anyOf") if one != {"type": "null"}]
        schema |= others[0]
    return {"schema": schema, **({"description": about} if about else {})}


def _responses(path: str, operation: Operation) -> dict[str, Json]:
    made: dict[str, Json] = {
        str(status): {"description": text} for status, text in operation.statuses.items()
    }
    content: Json = {media: _text(example) for media, example in operation.media.items()}
    about = "It is so."
    if operation.answer is not None:
        about = (operation.answer.__doc__ or about).strip()
        content = {
            JSON: {"schema": _ref(operation.answer), "example": operation.example},
            **content,
        }
    if content:
        made["200"] = {"description": about, "headers": _headers(200), "content": content}
    codes = _codes_of(path, operation)
    for status in sorted({STATUS[code] for code in codes} | operation.failures.keys()):
        its_codes = [code for code in codes if STATUS[code] == status]
        made[str(status)] = _failure(status, its_codes, operation.failures.get(status))
    return made


def _codes_of(path: str, operation: Operation) -> list[str]:
    """The codes of all failures that a call may have, in the order of the table of codes."""
    codes = {"bad_request", "forbidden", "internal", *operation.codes}
    if operation.auth:
        codes.add("unauthorized")
    if "{" in path:
        codes.add("not_found")
    if operation.body is not None or operation.multipart is not None:
        codes |= {
            "payload_too_large",
            "unsupported_media_type",
            "request_timeout",
            "rate_limited",
        }
    return [code for code in STATUS if code in codes]


def _failure(status: int, codes: list[str], shape: type | None) -> Json:
    about = [f"`{code}`: {CODES[code][0]}" for code in codes]
    schemas = [_ref(shapes.Failure)] if codes else []
    if shape is not None:
        about.append(str(shape.__doc__))
        schemas.append(_ref(shape))
    content: Json = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if codes:
        content["examples"] = {code: {"value": _example(code)} for code in codes}
    return {
        "description": "\n\n".join(about),
        "headers": _headers(status),
        "content": {JSON: content},
    }


def _example(code: str) -> Json:
    return {"ok": False, "error": CODES[code][1], "code": code, "request_id": REQUEST_ID}


def _headers(status: int) -> Json:
    """The headers that an answer has for its reader."""
    known: Json = {"X-Request-Id": {"required": True, "schema": {"type": "string"}}}
    if status == 401:
        known["WWW-Authenticate"] = {"required": True, "schema": {"const": "Bearer"}}
    if status in (429, 503):
        seconds = {"type": "integer", "minimum": 0}
        known["Retry-After"] = {"description": "Seconds.", "schema": seconds}
    return known


def _ref(shape: type) -> Json:
    return {"$ref": REF.format(name=shape.__name__)}


def _text(example: str) -> Json:
    return {"schema": {"type": "string"}, "example": example}

"""Derives the OpenAPI 3.1 document of the REST calls from their declarations (``endpoint.py``)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from .. import __version__
from ..errors import ErrorCode
from ..sessions.content import ContentBlock
from .endpoint import JSON, Endpoint, Tag
from .request_values import schema_of_custom
from .responses import Failure
from .sse import SSE

REF = "#/components/schemas/{name}"
DESCRIPTION = """\
The REST interface of clawdforge. The WebSocket interface, and everything that OpenAPI cannot
express, is described in `docs/reference/protocol.md`. Fields may be added anywhere; no field is
renamed or removed. Ignore fields that you do not know.

Every failure is `{"ok": false, "error": "for people", "code": "for programs"}`.
"""
EXAMPLES: Mapping[str, str] = {
    "bad_request": "model: must be text or null, not a whole number",
    "not_supported": "mcp_servers: 'web': the agent does not support the type 'http'",
    "unauthorized": "a valid token is needed: Authorization: Bearer cf_…",
    "forbidden": "this needs the admin token",
    "not_found": "no such session",
    "method_not_allowed": "Method Not Allowed",
    "request_timeout": "the body did not arrive in time",
    "conflict": "the name 'my-bot' is taken",
    "session_closed": "the session is closed",
    "payload_too_large": "the body is too large",
    "precondition_failed": "the file has changed",
    "budget_exceeded": "the app has used up its budget (usd_per_day: 5)",
    "schema_failed": 'the result is not valid: result[\'n\']: "1" is not of type "integer"',
    "unsupported_media_type": "Content-Encoding is not supported: send the body without it",
    "range_not_satisfiable": "the file has 1024 bytes",
    "expectation_failed": "the only supported expectation is 100-continue",
    "upgrade_required": "this is a WebSocket: upgrade to it",
    "queue_full": "8 prompts are waiting already; retry after one has run",
    "rate_limited": "too many prompts in a minute",
    "internal": "internal error; the server's log has the details",
    "agent_unavailable": (
        "agent 'codex' is not installed: npm install -g @agentclientprotocol/codex-acp@2"
    ),
    "agent_failed": "the agent ended the turn without a response",
    "login_required": (
        "the agent 'codex' requires a login: run `codex login`, or set OPENAI_API_KEY"
    ),
    "pool_full": "session limit reached",
    "draining": "the server is going away; try again in a moment",
    "server_restarted": "the server restarted during the turn; send the prompt again",
    "agent_timeout": "the turn reached its time limit",
}
"""A message of each error code."""
REQUEST_ID_EXAMPLE = "5ff2013ce33e4337"

JsonObject = dict[str, Any]


def document(endpoints: Sequence[Endpoint]) -> JsonObject:
    """Return the whole document."""
    paths: dict[str, JsonObject] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    used = {endpoint.tag for endpoint in endpoints}
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "clawdforge",
            "version": __version__,
            "summary": "A realtime server for coding agents",
            "description": DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": ".", "description": "The server of this document, also below a path."}],
        "tags": [{"name": tag.value} for tag in Tag if tag in used],
        "paths": paths,
        "components": {
            "schemas": _schemas(endpoints),
            "securitySchemes": {
                "app": {"type": "http", "scheme": "bearer", "description": "The app's token."},
                "admin": {"type": "http", "scheme": "bearer", "description": "The admin token."},
            },
        },
    }


def _schemas(endpoints: Sequence[Endpoint]) -> JsonObject:
    """Return the schemas of all bodies, by name."""
    requests: list[Any] = [ContentBlock]
    successes: list[type] = []
    failures: list[type] = [Failure]
    for endpoint in endpoints:
        plain = (endpoint.body, endpoint.form, endpoint.own_failure)
        requests += [struct for struct in plain if struct]
        if endpoint.result is not None:
            (successes if endpoint.has_ok else requests).append(endpoint.result)
        failures += endpoint.failure_results.values()
    refs, components = msgspec.json.schema_components(
        dict.fromkeys([*requests, *successes, *failures]),
        schema_hook=schema_of_custom,
        ref_template=REF,
    )
    for ok, structs in ((True, successes), (False, failures)):
        for name in dict.fromkeys(struct.__name__ for struct in structs):
            components[name] = _with_ok(components[name], ok)
    return {"ContentBlock": refs[0], **components}


def _with_ok(schema: JsonObject, ok: bool) -> JsonObject:
    """Add the field that ``responses.py`` writes in front of a struct's own."""
    return {
        **schema,
        "properties": {"ok": {"type": "boolean", "const": ok}, **schema["properties"]},
        "required": ["ok", *schema["required"]],
    }


def _operation(endpoint: Endpoint) -> JsonObject:
    words = re.findall(r"\w+", f"{endpoint.method.lower()} {endpoint.path}")
    operation: JsonObject = {
        "tags": [endpoint.tag.value],
        "summary": endpoint.summary,
        "operationId": "_".join(words),
        "parameters": list(_parameters(endpoint)),
        "responses": dict(sorted(_responses(endpoint).items())),
        "security": [
            *([{endpoint.auth: []}] if endpoint.auth else []),
            *([{}] if endpoint.auth_in_handler else []),
        ],
    }
    if endpoint.description:
        operation["description"] = endpoint.description
    if endpoint.body is not None:
        is_required = any(field.required for field in msgspec.structs.fields(endpoint.body))
        content: JsonObject = {"schema": _ref(endpoint.body), "example": endpoint.request_example}
        operation["requestBody"] = {"required": is_required, "content": {JSON: content}}
    if endpoint.form is not None:
        content = {"schema": _ref(endpoint.form)}
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": content}}
    if endpoint.upload:
        content = {"schema": {"type": "string", "format": "binary"}}
        operation["requestBody"] = {"required": False, "content": {endpoint.upload: content}}
    return operation


def _parameters(endpoint: Endpoint) -> Iterator[JsonObject]:
    for name in re.findall(r"{(\w+)}", endpoint.path):
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
    for location, struct in (("query", endpoint.query), ("header", endpoint.headers)):
        if struct is None:
            continue
        schema = msgspec.json.schema(struct, schema_hook=schema_of_custom)
        for name, value in schema["$defs"][struct.__name__]["properties"].items():
            yield {"name": name, "in": location, **_parameter(value)}


def _parameter(schema: JsonObject) -> JsonObject:
    """Return the schema of a parameter. A parameter is left out instead of being null."""
    schema = dict(schema)
    description = schema.pop("description", None)
    if schema.get("default", ...) is None:
        del schema["default"]
        others = [option for option in schema.pop("anyOf") if option != {"type": "null"}]
        schema |= others[0]
    return {"schema": schema, **({"description": description} if description else {})}


def _responses(endpoint: Endpoint) -> dict[str, JsonObject]:
    responses: dict[str, JsonObject] = {
        str(status): {"description": text} for status, text in endpoint.statuses.items()
    }
    content: JsonObject = {
        # Some tools apply the schema of a stream to the whole of it, others to each event.
        media: {"schema": {} if media == SSE else {"type": "string"}, "example": example}
        for media, example in endpoint.media.items()
    }
    description = "Success."
    if endpoint.result is not None:
        description = (endpoint.result.__doc__ or description).strip()
        content = {
            JSON: {"schema": _ref(endpoint.result), "example": endpoint.example},
            **content,
        }
    if content:
        responses["200"] = {
            "description": description,
            "headers": _headers(200),
            "content": content,
        }
    codes = _codes(endpoint)
    for status in sorted({code.status for code in codes} | endpoint.failure_results.keys()):
        its_codes = [code for code in codes if code.status == status]
        structs = (endpoint.failure_results.get(status), endpoint.own_failure)
        responses[str(status)] = _failure(
            status, its_codes, [struct for struct in structs if struct]
        )
    return responses


def _codes(endpoint: Endpoint) -> list[ErrorCode]:
    """Return the codes of all failures that a call may have, in the order of :class:`ErrorCode`."""
    codes = {"bad_request", "forbidden", "internal", *endpoint.failures}
    if endpoint.auth:
        codes.add("unauthorized")
    if "{" in endpoint.path:
        codes.add("not_found")
    if endpoint.body is not None or endpoint.form is not None or endpoint.upload:
        codes |= {
            "payload_too_large",
            "unsupported_media_type",
            "request_timeout",
            "rate_limited",
        }
    return [code for code in ErrorCode if code in codes]


def _failure(status: int, codes: list[ErrorCode], structs: Sequence[type]) -> JsonObject:
    descriptions = [f"`{code}`: {code.description}" for code in codes]
    schemas = [_ref(Failure)] if codes else []
    for struct in structs:
        descriptions.append(str(struct.__doc__))
        schemas.append(_ref(struct))
    content: JsonObject = {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}
    if codes:
        content["examples"] = {str(code): {"value": _example(code)} for code in codes}
    return {
        "description": "\n\n".join(descriptions),
        "headers": _headers(status),
        "content": {JSON: content},
    }


def _example(code: ErrorCode) -> JsonObject:
    return {
        "ok": False,
        "error": EXAMPLES[code],
        "code": str(code),
        "request_id": REQUEST_ID_EXAMPLE,
    }


def _headers(status: int) -> JsonObject:
    """Return the headers of a response that a client may need."""
    headers: JsonObject = {"X-Request-Id": {"required": True, "schema": {"type": "string"}}}
    if status == 401:
        headers["WWW-Authenticate"] = {"required": True, "schema": {"const": "Bearer"}}
    if status in (429, 503):
        seconds = {"type": "integer", "minimum": 0}
        headers["Retry-After"] = {"description": "Seconds.", "schema": seconds}
    return headers


def _ref(struct: type) -> JsonObject:
    return {"$ref": REF.format(name=struct.__name__)}

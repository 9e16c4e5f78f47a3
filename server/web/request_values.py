"""Checks the values of a request (body, query, headers) against msgspec structs."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

import msgspec
from aiohttp import web
from multidict import MultiMapping

from ..errors import bad_request
from ..validation import in_words
from .request_body import BODY_READER

StructT = TypeVar("StructT", bound=msgspec.Struct)


@runtime_checkable
class CustomType(Protocol):
    """A type of a field that msgspec does not know: it checks and describes itself."""

    @classmethod
    def from_json(cls, value: Any) -> Any:
        """Check a decoded JSON value.

        Raises:
            Error: ``bad_request``, naming the field.
        """

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of the values that :meth:`from_json` accepts."""


async def read_body(request: web.Request, struct: type[StructT]) -> StructT:
    """Read the JSON body of *request*. An empty body is an empty object.

    Raises:
        Error: the errors of :meth:`BodyReader.read_json`; a ``bad_request`` names the field.
    """
    return from_json(await request.app[BODY_READER].read_json(request), struct)


def read_query(request: web.Request, struct: type[StructT]) -> StructT:
    """Read the query parameters that *struct* names.

    Raises:
        Error: ``bad_request``, naming the parameter.
    """
    return from_texts(_single_values(request.query, struct), struct)


def read_headers(request: web.Request, struct: type[StructT]) -> StructT:
    """Read the headers that *struct* names.

    Raises:
        Error: ``bad_request``, naming the header.
    """
    return from_texts(_single_values(request.headers, struct), struct)


def _single_values(values: MultiMapping[str], struct: type[StructT]) -> dict[str, str]:
    """Return the values of the fields of *struct*.

    Raises:
        Error: ``bad_request``; a field has several different values.
    """
    single: dict[str, str] = {}
    for name in _field_names(struct):
        texts = set(values.getall(name, ()))
        if len(texts) > 1:
            raise bad_request(f"{name}: has several different values")
        if texts:
            single[name] = texts.pop()
    return single


def from_texts(values: Mapping[str, str], struct: type[StructT]) -> StructT:
    """Check fields whose values arrived as text, and convert them to the types of *struct*.

    Raises:
        Error: ``bad_request``, naming the field.
    """
    named = {name: values[name] for name in _field_names(struct) if name in values}
    return _convert(named, struct, strict=False)


def from_json(value: Any, struct: type[StructT]) -> StructT:
    """Check a decoded JSON value.

    Raises:
        Error: ``bad_request``, naming the field.
    """
    return _convert(value, struct, strict=True)


@functools.cache
def _field_names(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    # Cached because msgspec evaluates every annotation: a quarter of the time to open a socket.
    return tuple(field.encode_name for field in msgspec.structs.fields(struct))


def _convert(value: Any, struct: type[StructT], *, strict: bool) -> StructT:
    try:
        return msgspec.convert(value, struct, strict=strict, dec_hook=_convert_custom)
    except (msgspec.ValidationError, RecursionError) as error:
        if error.__cause__ is not None:  # raised by our hook: an Error, or a defect
            raise error.__cause__ from None
        raise bad_request(f"{in_words(error)}{_allowed_values(str(error), struct)}") from None


def _allowed_values(message: str, struct: type[StructT]) -> str:
    """List the allowed values of an enum field; msgspec's message names only the refused one."""
    match = re.fullmatch(r"Invalid enum value .* - at `\$\.(\w+)`", message, re.DOTALL)
    if match is None:
        return ""
    schema = msgspec.json.schema(struct, schema_hook=schema_of_custom)["$defs"][struct.__name__]
    field = schema["properties"].get(match[1], {})
    values = [
        value for schema in (field, *field.get("anyOf", ())) for value in schema.get("enum", ())
    ]
    return f": it may be {', '.join(map(str, values))}" if values else ""


def _convert_custom(kind: type, value: Any) -> Any:
    assert issubclass(kind, CustomType)
    return kind.from_json(value)


def schema_of_custom(kind: type) -> dict[str, Any]:
    """Return the JSON Schema of a field type that msgspec does not know."""
    assert issubclass(kind, CustomType)
    return kind.json_schema()

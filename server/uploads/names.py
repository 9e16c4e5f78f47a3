"""The names of uploaded files: read as clients write them, and made fit for a disk.

A name keeps the letters and digits of every script, because people and agents tell files apart by
them. It loses what a file system, a shell or a reader could take for something else.
"""

from __future__ import annotations

import email.errors
import email.header
import re
import unicodedata
from collections.abc import Iterator, Mapping
from urllib.parse import unquote_to_bytes

MAX_NAME_BYTES = 255
"""What Linux's file systems allow for one name, in UTF-8."""
MAX_SUFFIX_BYTES = 32
NAMELESS = "file"

_PARAMETER = re.compile(
    r";\s*(?P<key>[^\s=;\"]+)\s*=\s*(?:\"(?P<quoted>(?:\\[\"\\]|\\(?![\"\\])|[^\"\\])*)\"|(?P<token>[^;]*))"
)
_EXTENDED = re.compile(r"(?P<charset>[^']*)'[^']*'(?P<value>.*)", re.DOTALL)
_PERCENT = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*\Z", re.DOTALL)
_MIME_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?=")
_CHARSETS = frozenset({"utf-8", "utf8", "iso-8859-1", "latin1", "us-ascii", "windows-1252"})

_ASCII = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_KEPT_CATEGORIES = ("L", "M", "N", "So", "Sc")
_SKIN_TONES = range(0x1F3FB, 0x1F400)  # they change the emoji before them
# Nothing is drawn for them, though their categories are those of letters, marks and symbols.
_INVISIBLE = frozenset(
    {
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *range(0x180B, 0x1810),
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    }
)
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)


def disposition(header: str) -> Mapping[str, str]:
    """The parameters of a ``Content-Disposition`` header, their names in lower case.

    Browsers escape nothing but quotes and line ends in a name, so a semicolon or a backslash in it
    is one of its characters.
    """
    found: dict[str, str] = {}
    for match in _PARAMETER.finditer(header):
        quoted = match["quoted"]
        value = match["token"].strip() if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        found.setdefault(match["key"].lower(), value)
    return found


def client_name(parameters: Mapping[str, str]) -> str:
    """The name that a client gave to its file, decoded; empty if it gave none.

    Clients write it as it is (browsers), as RFC 5987 and 2231 have it, percent-encoded, or as
    e-mail has it.
    """
    pieces = "".join(_continuations(parameters))
    return (
        _extended(parameters.get("filename*", ""))
        or _extended(pieces)
        or _plain(pieces)
        or _plain(parameters.get("filename", ""))
    )


def _continuations(parameters: Mapping[str, str]) -> Iterator[str]:
    """The pieces of a name that RFC 2231 splits: ``filename*0*=…; filename*1=…``."""
    for number in range(len(parameters)):
        key = f"filename*{number}"
        piece = parameters.get(f"{key}*", parameters.get(key))
        if piece is None:
            return
        yield piece


def _extended(value: str) -> str:
    """``utf-8'en'a%20name``; empty if it is no such value."""
    match = _EXTENDED.match(value)
    if match is None or match["charset"].lower() not in _CHARSETS:
        return ""
    try:
        return unquote_to_bytes(match["value"]).decode(match["charset"])
    except UnicodeError:
        return ""


def _plain(value: str) -> str:
    # A byte that is no UTF-8 came as half a surrogate pair: it is Latin-1, HTTP's old charset.
    raw = value.encode("utf-8", "surrogateescape") if _has_raw_bytes(value) else None
    if raw is not None:
        value = raw.decode("iso-8859-1")
    if _MIME_WORD.search(value):
        return _mime_decoded(value)
    if "%" in value and _PERCENT.match(value):
        try:
            return unquote_to_bytes(value).decode()
        except UnicodeError:
            return value
    return value


def _has_raw_bytes(value: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in value)


def _mime_decoded(value: str) -> str:
    """RFC 2047: ``=?utf-8?B?…?=``."""
    try:
        pieces = email.header.decode_header(value)
        return "".join(
            piece if isinstance(piece, str) else piece.decode(_known_charset(charset))
            for piece, charset in pieces
        )
    except (UnicodeError, email.errors.HeaderParseError):
        return value


def _known_charset(charset: str | None) -> str:
    return charset if charset is not None and charset.lower() in _CHARSETS else "utf-8"


def harmless(name: str) -> str:
    """*name* as a file may be called: never empty, no path, at most 255 bytes, in NFC."""
    base = re.split(r"[/\\]", name.strip())[-1]
    kept = "".join(map(_kept, unicodedata.normalize("NFC", base)))
    kept = unicodedata.normalize("NFC", re.sub("_{2,}", "_", kept))
    while kept and (kept[0] in ".-" or unicodedata.category(kept[0])[0] == "M"):
        kept = kept[1:]  # a hidden file, an option, a mark on what stands before the name
    kept = kept.rstrip(".")
    if _RESERVED.match(kept):
        kept = f"_{kept}"
    return _shortened(kept) or NAMELESS


def _kept(character: str) -> str:
    if character.isascii():
        return character if character in _ASCII else "_"
    number, category = ord(character), unicodedata.category(character)
    if category == "Cf" or number in _INVISIBLE:
        return ""
    return character if category.startswith(_KEPT_CATEGORIES) or number in _SKIN_TONES else "_"


def _shortened(name: str) -> str:
    """At most 255 bytes of *name*, with its ending; no character is cut from its marks."""
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    stem, dot, suffix = name.rpartition(".")
    ending = dot + suffix
    if not stem or len(ending.encode()) > MAX_SUFFIX_BYTES:
        stem, ending = name, ""
    room = MAX_NAME_BYTES - len(ending.encode())
    short = stem.encode()[:room].decode(errors="ignore")
    if unicodedata.category(stem[len(short)])[0] == "M":
        while len(short) > 1 and unicodedata.category(short[-1])[0] == "M":
            short = short[:-1]
        short = short[:-1] or short
    return short + ending

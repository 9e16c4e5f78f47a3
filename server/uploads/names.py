"""The names of uploaded files: decodes a client's name, and converts it into a safe name.

A safe name keeps the letters and digits of every script, because people and agents distinguish
files by them. It has no characters with a special meaning to file systems, shells or readers.
"""

from __future__ import annotations

import email.errors
import email.header
import re
import unicodedata
from collections.abc import Iterator, Mapping
from urllib.parse import unquote_to_bytes

MAX_NAME_BYTES = 255
"""The limit of Linux file systems for one name, in UTF-8."""
MAX_SUFFIX_BYTES = 32
DEFAULT_NAME = "file"

_HEADER_PARAMETER = re.compile(
    r";\s*(?P<key>[^\s=;\"]+)\s*=\s*(?:\"(?P<quoted>(?:\\[\"\\]|\\(?![\"\\])|[^\"\\])*)\"|(?P<token>[^;]*))"
)
_EXTENDED = re.compile(r"(?P<charset>[^']*)'[^']*'(?P<value>.*)", re.DOTALL)
_PERCENT = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*\Z", re.DOTALL)
_MIME_WORD = re.compile(r"=\?[^?\s]+\?[bBqQ]\?[^?]*\?=")
_CHARSETS = frozenset({"utf-8", "utf8", "iso-8859-1", "latin1", "us-ascii", "windows-1252"})

_ASCII = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_KEPT_CATEGORIES = ("L", "M", "N", "So", "Sc")
_SKIN_TONES = range(0x1F3FB, 0x1F400)  # modifiers of the emoji before them
# Invisible characters whose categories are those of letters, marks and symbols.
_INVISIBLE = frozenset(
    {
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
        *range(0x180B, 0x1810),
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    }
)
_RESERVED = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\.|\Z)", re.IGNORECASE)


def parse_content_disposition(header: str) -> Mapping[str, str]:
    """Parse the parameters of a ``Content-Disposition`` header; keys are in lower case.

    Browsers only escape quotes and line ends, so a semicolon or a backslash within quotes is part
    of the value.
    """
    parameters: dict[str, str] = {}
    for match in _HEADER_PARAMETER.finditer(header):
        quoted = match["quoted"]
        value = match["token"].strip() if quoted is None else re.sub(r'\\(["\\])', r"\1", quoted)
        parameters.setdefault(match["key"].lower(), value)
    return parameters


def decode_filename(parameters: Mapping[str, str]) -> str:
    """Decode a client's file name; empty if there is none.

    Clients send it as plain UTF-8 (browsers), by RFC 5987 and RFC 2231, percent-encoded, or as
    RFC 2047 words (e-mail).
    """
    pieces = "".join(_continuations(parameters))
    return (
        _decode_extended(parameters.get("filename*", ""))
        or _decode_extended(pieces)
        or _decode_plain(pieces)
        or _decode_plain(parameters.get("filename", ""))
    )


def _continuations(parameters: Mapping[str, str]) -> Iterator[str]:
    """The pieces of a name that is split by RFC 2231: ``filename*0*=…; filename*1=…``."""
    for number in range(len(parameters)):
        key = f"filename*{number}"
        piece = parameters.get(f"{key}*", parameters.get(key))
        if piece is None:
            return
        yield piece


def _decode_extended(value: str) -> str:
    """Decode an RFC 5987 value such as ``utf-8'en'a%20name``; empty if it is malformed."""
    match = _EXTENDED.match(value)
    if match is None or match["charset"].lower() not in _CHARSETS:
        return ""
    try:
        return unquote_to_bytes(match["value"]).decode(match["charset"])
    except UnicodeError:
        return ""


def _decode_plain(value: str) -> str:
    # Bytes that are not UTF-8 arrive as lone surrogates. They are Latin-1, HTTP's old charset.
    raw = value.encode("utf-8", "surrogateescape") if _has_raw_bytes(value) else None
    if raw is not None:
        value = raw.decode("iso-8859-1")
    if _MIME_WORD.search(value):
        return _decode_mime(value)
    if "%" in value and _PERCENT.match(value):
        try:
            return unquote_to_bytes(value).decode()
        except UnicodeError:
            return value
    return value


def _has_raw_bytes(value: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in value)


def _decode_mime(value: str) -> str:
    """Decode RFC 2047 words: ``=?utf-8?B?…?=``."""
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


def safe_name(name: str) -> str:
    """Convert *name* into a safe file name: one component, 1 to 255 bytes, in NFC."""
    base = re.split(r"[/\\]", name.strip())[-1]
    kept = "".join(map(_safe_character, unicodedata.normalize("NFC", base)))
    kept = unicodedata.normalize("NFC", re.sub("_{2,}", "_", kept))
    while kept and (kept[0] in ".-" or unicodedata.category(kept[0])[0] == "M"):
        kept = kept[1:]  # no hidden file, no option, no combining mark
    kept = kept.rstrip(".")
    if _RESERVED.match(kept):
        kept = f"_{kept}"
    return _truncate(kept) or DEFAULT_NAME


def _safe_character(character: str) -> str:
    if character.isascii():
        return character if character in _ASCII else "_"
    number, category = ord(character), unicodedata.category(character)
    if category == "Cf" or number in _INVISIBLE:
        return ""
    return character if category.startswith(_KEPT_CATEGORIES) or number in _SKIN_TONES else "_"


def _truncate(name: str) -> str:
    """Truncate *name* to 255 bytes. It keeps its suffix, and characters keep their marks."""
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

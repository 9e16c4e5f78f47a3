"""The texts of the notifications between nodes, and the channels on which they are sent.

Small messages and log entries are in the notification itself, so that its receiver need not query
the database. Everything in a notification is also in a table, which has the truth.

Anybody who may connect to the database can listen to a channel and send to it, if its name is
known. So the names are made with a secret that is in a table.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Iterable, Sequence

from ..storage.schema import LogRow

NOTICE_BYTES = 7000
"""A notification has less than 8,000 bytes."""
MESSAGES, HEADS, ENTRIES = "messages ", "heads ", "entries "
"""The beginnings of notifications: of messages, of new heads of logs, and of log entries."""
_EVERYONE = "all"


def channel_of(secret: bytes, node: int | None) -> str:
    """The name of the channel of a node, or of all nodes."""
    name = _EVERYONE if node is None else str(node)
    return f"clawdforge_{hmac.digest(secret, name.encode(), hashlib.sha256).hex()[:32]}"


def messages_text(sender: int, before: int, messages: Iterable[tuple[int, bytes]]) -> str:
    """The notification with messages; an empty one if they are too long for it.

    Args:
        before: the number of the sender's last message to the same node before these.
        messages: the number and the body of each.
    """
    parts = [f"{MESSAGES}{sender} {before}"]
    size = len(parts[0])
    for seq, body in messages:
        size += len(body) * 4 // 3 + 24
        if size > NOTICE_BYTES:
            return ""
        parts.append(f"{seq}:{binascii.b2a_base64(body, newline=False).decode()}")
    return " ".join(parts)


def messages_in(text: str) -> tuple[int, int, list[tuple[int, bytes]]]:
    """The sender, the number before, and the messages of :func:`messages_text`."""
    sender, before, *parts = text[len(MESSAGES) :].split(" ")
    messages = []
    for part in parts:
        seq, _, body = part.partition(":")
        messages.append((int(seq), binascii.a2b_base64(body)))
    return int(sender), int(before), messages


def heads_texts(heads: Iterable[tuple[int, int]]) -> list[str]:
    """The notifications with the numbers of sessions and the heads of their logs."""
    texts: list[str] = []
    text = HEADS
    for number, head in heads:
        text += f"{number}:{head} "
        if len(text) > NOTICE_BYTES:
            texts.append(text)
            text = HEADS
    return texts if text == HEADS else [*texts, text]


def heads_of(text: str) -> list[tuple[int, int]]:
    """The heads of one of :func:`heads_texts`."""
    pairs = (part.split(":") for part in text.split()[1:])
    return [(int(number), int(head)) for number, head in pairs]


def entries_text(rows: Sequence[LogRow]) -> str:
    """The notification with consecutive entries of a log; an empty one if they are too long."""
    if not rows or sum(len(row.body) + 1 for row in rows) > NOTICE_BYTES:
        return ""
    first, last = rows[0], rows[-1]
    try:
        body = b"\n".join(row.body for row in rows).decode()
    except UnicodeDecodeError:
        return ""
    if "\0" in body:  # PostgreSQL has no such texts
        return ""
    return f"{ENTRIES}{first.session} {first.first_seq} {last.last_seq}\n{body}"


def row_of(text: str) -> LogRow:
    """The entries of :func:`entries_text` as one row."""
    head, _, body = text.partition("\n")
    session, first, last = head[len(ENTRIES) :].split(" ")
    return LogRow(int(session), int(first), int(last), body.encode())

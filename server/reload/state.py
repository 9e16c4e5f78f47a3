"""The state that a server hands to its next version, in a memory file.

Each owner of state defines a struct of its own, packs it and restores it. This module knows only
the version and the names of these parts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import TypeVar

import msgspec

from ..errors import StartError

STATE_VERSION = 1
"""The version of the state's format. Raise it if an earlier version cannot read a changed part."""
READABLE = frozenset({1})
"""The versions of the state that this code can restore."""
STATE_VARIABLE = "CLAWDFORGE_RELOAD_STATE"
"""The environment variable with the descriptor of the memory file."""

Part = TypeVar("Part", bound=msgspec.Struct)


class PassedDescriptors:
    """The descriptors that the next version inherits.

    They are still closed at any exec until :meth:`make_inheritable` is called.
    """

    def __init__(self) -> None:
        self._descriptors: set[int] = set()

    def add(self, descriptor: int) -> int:
        """Pass *descriptor* on. Return its number, which the next version uses, too."""
        self._descriptors.add(descriptor)
        return descriptor

    @property
    def numbers(self) -> list[int]:
        return sorted(self._descriptors)

    def make_inheritable(self, *, inheritable: bool = True) -> None:
        for descriptor in self._descriptors:
            os.set_inheritable(descriptor, inheritable)


class _StoredState(msgspec.Struct):
    """The content of the memory file.

    Attributes:
        reloads: the number of reloads of this process, with the one in progress.
        paused_at: the time on the monotonic clock at which the earlier version stopped.
        descriptors: all descriptors that were passed on.
        children: the pids of all processes that the server started and the next version knows.
        parts: by the names of their owners.
        trial_result: what the trial of the next version has reported, in JSON.
    """

    version: int
    reloads: int
    paused_at: float
    descriptors: list[int]
    children: list[int]
    parts: dict[str, msgspec.Raw]
    trial_result: bytes = msgspec.field(default=b"", name="found")


class Inherited:
    """The state that an earlier version of the server has left to this one.

    Attributes:
        reloads: the number of reloads of this process.
        paused_at: the time on the monotonic clock at which the earlier version stopped.
        children: the pids of the processes that the parts describe.
    """

    def __init__(self, stored: _StoredState) -> None:
        self.reloads = stored.reloads
        self.paused_at = stored.paused_at
        self.children = frozenset(stored.children)
        self._parts = stored.parts
        self._trial_result = stored.trial_result
        self._left = set(stored.descriptors)

    def part(self, name: str, kind: type[Part]) -> Part | None:
        """Return the part of that name; None if the earlier version left none.

        Raises:
            StartError: it cannot be read.
        """
        raw = self._parts.get(name)
        if raw is None:
            return None
        try:
            return msgspec.msgpack.decode(raw, type=kind)
        except msgspec.DecodeError as error:
            raise StartError(f"the state of the earlier version is not valid: {error}") from None

    def trial_result(self, kind: type[Part]) -> Part | None:
        """Return what the trial of this version has reported; None if that cannot be read."""
        try:
            return msgspec.json.decode(self._trial_result, type=kind)
        except msgspec.DecodeError:
            return None

    def claim(self, descriptor: int) -> int:
        """Keep *descriptor*, and return it. :meth:`close_rest` closes those that nobody claims."""
        self._left.discard(descriptor)
        return descriptor

    def close_rest(self) -> None:
        while self._left:
            os.close(self._left.pop())


def write_state(
    parts: Mapping[str, msgspec.Struct],
    passed: PassedDescriptors,
    *,
    reloads: int,
    paused_at: float,
    children: list[int],
    trial_result: bytes,
) -> int:
    """Write the state into a memory file. Return its descriptor, which is passed on, too.

    Raises:
        OSError: no memory or descriptor is left.
    """
    encode = msgspec.msgpack.encode
    descriptor = os.memfd_create("clawdforge-reload")
    try:
        raw = {name: msgspec.Raw(encode(part)) for name, part in parts.items()}
        stored = _StoredState(
            STATE_VERSION, reloads, paused_at, passed.numbers, children, raw, trial_result
        )
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(encode(stored))
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return passed.add(descriptor)


def read_state(environ: MutableMapping[str, str]) -> Inherited | None:
    """Read the state that an earlier version has left, and remove its variable from *environ*.

    Returns:
        None if the server was started in the ordinary way.

    Raises:
        StartError: it cannot be read.
    """
    number = environ.pop(STATE_VARIABLE, None)
    if number is None:
        return None
    try:
        descriptor = int(number)
        os.set_inheritable(descriptor, False)
        with os.fdopen(descriptor, "rb") as file:
            stored = msgspec.msgpack.decode(file.read(), type=_StoredState)
        if stored.version not in READABLE:
            raise StartError(cannot_read(stored.version))
        for other in stored.descriptors:
            if other != descriptor:
                os.set_inheritable(other, False)
    except (OSError, ValueError) as error:  # also msgspec's DecodeError
        raise StartError(f"the state of the earlier version cannot be read: {error}") from None
    return Inherited(stored)


def cannot_read(version: int) -> str:
    """The reason for which a state of that version is refused."""
    known = ", ".join(map(str, sorted(READABLE)))
    return (
        f"this version restores a state of version {known}, but the running server's has version"
        f" {version}: restart the server instead"
    )

"""The server to connect to: its address, the token, and the options of new sessions."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from .. import COMMAND
from .failure import ConnectError, ExitStatus

SUMMARY = "serve an editor: an ACP agent on stdin and stdout, for a server at any address"
DEFAULT_URL = "http://127.0.0.1:8800"
TOKEN_VARIABLE = "CLAWDFORGE_TOKEN"  # noqa: S105 - the name of a variable
URL_VARIABLE = "CLAWDFORGE_URL"
MAX_TOKEN_BYTES = 4096
DEFAULT_WAIT_SECS = 600.0
SESSION_OPTIONS = ("agent", "model", "mode", "permission")
SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}


class Target(msgspec.Struct, frozen=True):
    """The server, the credential and the session to use.

    Attributes:
        url: the WebSocket of ACP, with the options in its query.
        session: the id of the session that replaces the editor's first new one, or None.
        wait: seconds for which an interrupted connection is retried.
    """

    url: str
    token: str
    session: str | None
    wait: float

    @property
    def address(self) -> str:
        """The address for messages: without the path and the query."""
        parts = urlsplit(self.url)
        return f"{'https' if parts.scheme == 'wss' else 'http'}://{parts.netloc}"


def add_connect_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``connect``."""
    parser.add_argument(
        "--url", help=f"the server's address (default: ${URL_VARIABLE}, else {DEFAULT_URL})"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        type=Path,
        help=f"a file that contains the app's token; without it, ${TOKEN_VARIABLE} has the token",
    )
    parser.add_argument(
        "--session", metavar="ID", help="continue this session instead of a new one"
    )
    for name in SESSION_OPTIONS:
        parser.add_argument(f"--{name}", help=f"the {name} of new sessions")
    parser.add_argument(
        "--wait",
        metavar="SECS",
        type=float,
        default=DEFAULT_WAIT_SECS,
        help="how long to retry if the server goes away (default: %(default)g)",
    )


def target_of(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Target:
    """Combine the arguments and the environment.

    Raises:
        ConnectError: the address is invalid, or there is no token.
    """
    given = arguments.url or environ.get(URL_VARIABLE, "").strip() or DEFAULT_URL
    options = [
        (name, value) for name in SESSION_OPTIONS if (value := getattr(arguments, name)) is not None
    ]
    url = acp_address(given, options)
    token = _token(arguments.token_file, environ)
    return Target(url, token, arguments.session, max(0.0, arguments.wait))


def acp_address(address: str, options: Sequence[tuple[str, str]]) -> str:
    """The WebSocket's address for the address of a server or of its ``/acp``.

    Raises:
        ConnectError: it is not an address of HTTP or WebSocket.
    """
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        is_valid = bool(parts.hostname) and parts.scheme in SCHEMES and parts.port != 0
    except ValueError:
        is_valid, parts = False, urlsplit("")
    if not is_valid:
        raise ConnectError(
            f"--url: {address!r} is not the address of a server, such as {DEFAULT_URL}",
            ExitStatus.USAGE,
        )
    if parts.username is not None or parts.password is not None:
        raise ConnectError(
            f"--url: must not contain a user or a password; set {TOKEN_VARIABLE}", ExitStatus.USAGE
        )
    path = parts.path.rstrip("/")
    path = path if path.endswith("/acp") else f"{path}/acp"
    query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), *options])
    return urlunsplit((SCHEMES[parts.scheme], parts.netloc, path, query, ""))


def _token(file: Path | None, environ: Mapping[str, str]) -> str:
    if file is not None:
        token = _token_in(file.expanduser())
    else:
        token = environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise ConnectError.of_token(
                f"no token: set {TOKEN_VARIABLE}, or name a file with --token-file."
                f" `{COMMAND} token add NAME` makes one on the server",
                ExitStatus.USAGE,
            )
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConnectError.of_token(
            "the token has characters that no token has: copy it again", ExitStatus.USAGE
        )
    return token


def _token_in(file: Path) -> str:
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as opened:  # noqa: PTH123 - a descriptor
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(0, "not a regular file")
            data = opened.read(MAX_TOKEN_BYTES + 1)
        token = data.decode().strip()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise ConnectError.of_token(f"--token-file: {file}: {reason}", ExitStatus.USAGE) from None
    if not token or len(data) > MAX_TOKEN_BYTES:
        raise ConnectError.of_token(
            f"--token-file: {file}: must contain a token and nothing else", ExitStatus.USAGE
        )
    return token

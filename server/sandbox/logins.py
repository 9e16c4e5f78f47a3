"""Copies of the operator's logins and settings of agents, for the homes of sandboxes.

A sandbox does not contain the home of the server's user, so an agent does not find the login there.
A file is copied into a session's home if its login stays valid when it is used twice. Logins that
renew themselves (OAuth with rotating tokens) are not copied: the first copy that renews itself
would invalidate all others, the operator's own included. Files with a key are not copied either if
the key is in the environment, which the agent gets in any case.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .. import safe_files

logger = logging.getLogger(__name__)

MAX_LOGIN_BYTES = 1 << 20


class LoginFile(NamedTuple):
    """A file in the operator's home that an agent needs.

    Attributes:
        path: below the home.
        keys: variables that make the file unnecessary.
        is_stable: returns whether the content may be copied.
    """

    path: str
    keys: tuple[str, ...] = ()
    is_stable: Callable[[Any], bool] = lambda content: True


def has_only_api_key(content: Any) -> bool:
    """Whether codex's ``auth.json`` has a key and no tokens that rotate."""
    if not isinstance(content, dict) or content.get("tokens"):
        return False
    return isinstance(content.get("OPENAI_API_KEY"), str)


def _has_only_keys(content: Any) -> bool:
    """Whether every entry of opencode's ``auth.json`` is a key."""
    if not isinstance(content, dict):
        return False
    return all(isinstance(entry, dict) and entry.get("type") == "api" for entry in content.values())


LOGIN_FILES: Mapping[str, tuple[LoginFile, ...]] = {
    "codex": (
        LoginFile(".codex/config.toml"),
        # Also if a key is in the environment: codex does not use that without this file.
        LoginFile(".codex/auth.json", (), has_only_api_key),
    ),
    "copilot": (LoginFile(".copilot/config.json", ("GH_TOKEN", "GITHUB_TOKEN")),),
    "gemini": (
        LoginFile(".gemini/settings.json"),
        LoginFile(".gemini/.env", ("GEMINI_API_KEY",)),
        # Google's refresh tokens do not rotate.
        LoginFile(".gemini/oauth_creds.json", ("GEMINI_API_KEY",)),
        LoginFile(".gemini/google_accounts.json", ("GEMINI_API_KEY",)),
    ),
    "opencode": (
        LoginFile(".config/opencode/opencode.json"),
        LoginFile(".local/share/opencode/auth.json", (), _has_only_keys),
    ),
    "qwen": (
        LoginFile(".qwen/settings.json"),
        LoginFile(".qwen/.env", ("OPENAI_API_KEY",)),
    ),
}

ROTATING: Mapping[str, tuple[str, str]] = {
    "claude": (
        ".claude/.credentials.json",
        "set ANTHROPIC_API_KEY, or CLAUDE_CODE_OAUTH_TOKEN to the output of `claude setup-token`",
    ),
    "codex": (".codex/auth.json", "set OPENAI_API_KEY"),
    "qwen": (".qwen/oauth_creds.json", "set OPENAI_API_KEY"),
}
"""Logins that are not copied, by agent: the file, and what to do instead."""


def copy_logins(
    agent: str,
    home: Path,
    target: tuple[Path, *tuple[str, ...]],
    environ: Collection[str],
    replaced: Collection[str] = (),
) -> None:
    """Copy the login files of *agent* that are newer than their copies. Blocking.

    Args:
        home: the home of the server's user.
        target: the session's home, as :mod:`safe_files` takes it.
        environ: the names of the variables that the agent gets.
        replaced: files that the agent gets with another content.
    """
    for login in LOGIN_FILES.get(agent, ()):
        if login.path in replaced or any(key in environ for key in login.keys):
            continue
        try:
            _copy_login(home / login.path, target, login)
        except OSError as error:
            logger.warning("the agent's login %s was not copied: %s", login.path, error.strerror)


def _copy_login(source: Path, target: tuple[Path, *tuple[str, ...]], login: LoginFile) -> None:
    try:
        status = source.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_LOGIN_BYTES:
        return
    *folders, name = PurePosixPath(login.path).parts
    with safe_files.folder(*target, *folders, make=True) as folder:
        try:
            if os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime >= status.st_mtime:
                return
        except FileNotFoundError:
            pass
    data = source.read_bytes()
    if source.suffix != ".json" or login.is_stable(_parsed(data)):
        write_in_home(target, login.path, data)


def write_in_home(home: tuple[Path, *tuple[str, ...]], path: str, data: bytes) -> None:
    """Write a file in the home of a sandbox, and replace any file or link of that name. Blocking.

    Args:
        home: as :mod:`safe_files` takes it.
        path: below the home.

    Raises:
        OSError: the file cannot be written.
    """
    *folders, name = PurePosixPath(path).parts
    part = f"{name}.clawdforge"
    with safe_files.folder(*home, *folders, make=True) as folder:
        safe_files.remove(*home, *folders, part)
        with safe_files.open_file(part, folder, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            file.write(data)
        os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def hidden_login(agent: str, home: Path | None, environ: Collection[str]) -> str | None:
    """Advice about a login of the operator that agents in a sandbox cannot use; None if none.

    Args:
        environ: the names of the variables that agents get.
    """
    if home is None or agent not in ROTATING:
        return None
    path, advice = ROTATING[agent]
    names = {"ANTHROPIC_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN", "ANTHROPIC_AUTH_TOKEN"}
    keys = names if agent == "claude" else {"OPENAI_API_KEY"}
    if keys & set(environ) or not (home / path).is_file():
        return None
    for login in LOGIN_FILES.get(agent, ()):
        if login.path == path and login.is_stable(_parsed((home / path).read_bytes())):
            return None
    return f"the sandbox does not contain the login in ~/{path}: {advice}"

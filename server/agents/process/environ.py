"""The environment that the host and the agents get: an allow-list.

What is not named here stays with the server, above all its own settings. More
names can be let through with ``CLAWDFORGE_AGENT_ENV``.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping

NAMES = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"),
        *("IS_SANDBOX", "API_TIMEOUT_MS", "DEMO_PACE_MS"),
    }
)
PREFIXES = (
    *("LC_", "XDG_", "GIT_", "NODE_", "NPM_CONFIG_", "npm_config_", "PYTHON", "VIRTUAL_ENV"),
    *("ANTHROPIC_", "CLAUDE_", "OPENAI_", "CODEX_", "GEMINI_", "GOOGLE_", "AWS_", "AZURE_"),
    *("MISTRAL_", "OPENROUTER_", "OPENCODE_", "COPILOT_", "GH_", "GITHUB_", "CURSOR_", "QWEN_"),
)


def with_folder_of(program: str, environ: Mapping[str, str]) -> dict[str, str]:
    """*environ*, in which *program*'s folder is the last one on the PATH.

    Many agents are scripts for Node, and the machine may have none but ours.
    """
    folder = os.path.dirname(program)  # noqa: PTH120
    return {**environ, "PATH": os.pathsep.join(filter(None, [environ.get("PATH"), folder]))}


def agent_environ(environ: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """What of *environ* an agent gets."""
    allowed = NAMES | set(more)
    return {
        name: value
        for name, value in environ.items()
        if (name in allowed or name.startswith(PREFIXES)) and not name.startswith("CLAWDFORGE_")
    }


def forget(name: str) -> None:
    """Remove a variable from this process's environment, and from where the kernel shows it."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    if (value := libc.getenv(os.fsencode(name))) is not None:
        ctypes.memset(value, 0, len(ctypes.string_at(value)))
    os.environ.pop(name, None)

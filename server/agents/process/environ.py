"""The allow-list of environment variables that the host and the agents receive.

Other variables, above all the server's own settings, are not passed on. The setting
``CLAWDFORGE_AGENT_ENV`` adds names to the list.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Mapping

ALLOWED_NAMES = frozenset(
    {
        *("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER"),
        *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
        *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"),
        *("IS_SANDBOX", "API_TIMEOUT_MS", "DEMO_PACE_MS"),
    }
)
ALLOWED_PREFIXES = (
    *("LC_", "XDG_", "GIT_", "NODE_", "NPM_CONFIG_", "npm_config_", "PYTHON", "VIRTUAL_ENV"),
    *("ANTHROPIC_", "CLAUDE_", "OPENAI_", "CODEX_", "GEMINI_", "GOOGLE_", "AWS_", "AZURE_"),
    *("MISTRAL_", "OPENROUTER_", "OPENCODE_", "COPILOT_", "GH_", "GITHUB_", "CURSOR_", "QWEN_"),
)


def with_folder_of(program: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return *environ* with *program*'s folder at the end of PATH.

    Many agents are Node scripts, and the machine may have no Node but the one that runs acpx.
    """
    folder = os.path.dirname(program)  # noqa: PTH120
    return {**environ, "PATH": os.pathsep.join(filter(None, [environ.get("PATH"), folder]))}


def agent_environ(environ: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """Return the variables of *environ* that an agent receives.

    Args:
        environ: the server's environment.
        more: names of further variables to pass on.
    """
    allowed = ALLOWED_NAMES | set(more)
    return {
        name: value
        for name, value in environ.items()
        if (name in allowed or name.startswith(ALLOWED_PREFIXES))
        and not name.startswith("CLAWDFORGE_")
    }


def forget(name: str) -> None:
    """Remove a variable from this process's environment and from /proc/PID/environ."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    if (value := libc.getenv(os.fsencode(name))) is not None:
        ctypes.memset(value, 0, len(ctypes.string_at(value)))
    os.environ.pop(name, None)

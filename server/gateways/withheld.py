"""The operator's keys that sandboxed agents do not get.

The key proxy serves Anthropic, OpenAI and Gemini. A key of any other service would reach the agent
itself, so a variable whose name says that it holds a secret is withheld from sandboxed agents. The
operator passes it on by name (``CLAWDFORGE_AGENT_ENV``), or by selecting the service that needs it
in the environment of the server.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from .providers import KEY_VARIABLES, is_set

_SECRET_NAME = re.compile(
    r"(^|_)(api_?key|key|(auth|access|refresh|bearer)?_?token|secret|pass(word|wd|phrase)|pat"
    r"|credentials?)(_(id|file|path|json|base64|bedrock|command|(full|relative)_uri|\d+))?$"
    r"|secret|apikey$",
    re.IGNORECASE,
)
SERVICES: Mapping[str, re.Pattern[str]] = {
    "CLAUDE_CODE_USE_BEDROCK": re.compile("AWS_"),
    "CLAUDE_CODE_USE_FOUNDRY": re.compile("ANTHROPIC_FOUNDRY_|AZURE_"),
    "CLAUDE_CODE_USE_VERTEX": re.compile("GOOGLE_"),
    "GOOGLE_GENAI_USE_VERTEXAI": re.compile("GOOGLE_"),
}
"""The names that a service needs, by the variable with which the operator selects it."""


def names_a_secret(name: str) -> bool:
    """Whether the name of a variable says that its value is a key, a token or a password."""
    return _SECRET_NAME.search(name) is not None


def withheld_names(environ: Mapping[str, str], listed: Collection[str]) -> frozenset[str]:
    """The variables that sandboxed agents do not get.

    Args:
        environ: the part of the server's environment that agents would get.
        listed: the names that the operator passes on.
    """
    selected = [names for switch, names in SERVICES.items() if is_set(environ.get(switch, ""))]
    return frozenset(
        name
        for name, value in environ.items()
        if value
        and names_a_secret(name)
        and name not in KEY_VARIABLES  # these are the key proxy's
        and name not in listed
        and not any(names.match(name) for names in selected)
    )

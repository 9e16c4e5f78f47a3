"""The APIs of models: their variables, their addresses, and the endpoints that agents use."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import msgspec

MODEL_NAME = r"[A-Za-z0-9._@:/-]{1,256}"
"""The name of a model in a path. It cannot leave the endpoint: ``..`` is refused before."""
OAUTH_BETA = "oauth-2025-04-20"
"""The beta header that Anthropic requires with the token of a subscription."""


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """The value of a header that authenticates a request.

    Attributes:
        header: in lower case.
        beta: an entry that ``anthropic-beta`` must have.
    """

    header: str
    value: str = dataclasses.field(repr=False)
    beta: str | None = None


class KeyVariable(msgspec.Struct, frozen=True):
    """A variable with a key.

    Attributes:
        header: the header that carries the key; ``authorization`` has it after ``Bearer``.
    """

    name: str
    header: str
    beta: str | None = None

    def secret(self, value: str) -> Secret:
        text = f"Bearer {value}" if self.header == "authorization" else value
        return Secret(self.header, text, self.beta)


class Provider(msgspec.Struct, frozen=True):
    """The API of one provider.

    Attributes:
        name: the first part of the path at the proxy.
        keys: its variables, the first one that is set being preferred for a header.
        bases: the variables with its base URL.
        prefix: the path at the end of a base URL, such as ``/v1``.
        address: its own base URL.
        endpoints: method and path below the base URL.
        query: the parameters that are passed on.
        headers_variable: a variable with further headers for all requests.
        off_if: variables that select another service with other credentials.
    """

    name: str
    keys: tuple[KeyVariable, ...]
    bases: tuple[str, ...]
    prefix: str
    address: str
    endpoints: tuple[tuple[str, re.Pattern[str]], ...]
    query: frozenset[str]
    headers_variable: str | None = None
    off_if: tuple[str, ...] = ()

    @property
    def variables(self) -> frozenset[str]:
        """All variables that decide where requests go and how they are authenticated."""
        more = [self.headers_variable] if self.headers_variable is not None else []
        return frozenset([*(key.name for key in self.keys), *self.bases, *more])

    def endpoint(self, method: str, path: str) -> str | None:
        """The path below the base URL; None if agents do not need it.

        Args:
            path: as the agent sent it. The version is optional: not all agents expect it in a base
                URL.
        """
        if self.prefix and path.startswith(f"{self.prefix}/"):
            path = path.removeprefix(self.prefix)
        if ".." in path or "//" in path:
            return None
        for allowed, pattern in self.endpoints:
            if method == allowed and pattern.fullmatch(path):
                return path
        return None


def _patterns(*texts: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    patterns = []
    for text in texts:
        method, path = text.split(" ", 1)
        patterns.append((method, re.compile(path.replace("NAME", MODEL_NAME))))
    return tuple(patterns)


ANTHROPIC = Provider(
    name="anthropic",
    keys=(
        KeyVariable("ANTHROPIC_API_KEY", "x-api-key"),
        KeyVariable("ANTHROPIC_AUTH_TOKEN", "authorization"),
        KeyVariable("CLAUDE_CODE_OAUTH_TOKEN", "authorization", OAUTH_BETA),
    ),
    bases=("ANTHROPIC_BASE_URL",),
    prefix="/v1",
    address="https://api.anthropic.com",
    endpoints=_patterns(
        "POST /messages",
        "POST /messages/count_tokens",
        "GET /models",
        "GET /models/NAME",
    ),
    query=frozenset({"beta", "limit", "after_id", "before_id"}),
    headers_variable="ANTHROPIC_CUSTOM_HEADERS",
    off_if=("CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX"),
)

OPENAI = Provider(
    name="openai",
    keys=(
        KeyVariable("OPENAI_API_KEY", "authorization"),
        KeyVariable("CODEX_API_KEY", "authorization"),
    ),
    bases=("OPENAI_BASE_URL", "OPENAI_API_BASE"),
    prefix="/v1",
    address="https://api.openai.com/v1",
    endpoints=_patterns(
        "POST /responses",
        "POST /responses/compact",
        "POST /responses/input_tokens",
        "POST /chat/completions",
        "POST /completions",
        "POST /embeddings",
        "GET /models",
        "GET /models/NAME",
    ),
    query=frozenset({"client_version"}),
)

GEMINI = Provider(
    name="gemini",
    keys=(
        KeyVariable("GEMINI_API_KEY", "x-goog-api-key"),
        KeyVariable("GOOGLE_API_KEY", "x-goog-api-key"),
        KeyVariable("GOOGLE_GENERATIVE_AI_API_KEY", "x-goog-api-key"),
    ),
    bases=("GOOGLE_GEMINI_BASE_URL",),
    prefix="",
    address="https://generativelanguage.googleapis.com",
    endpoints=_patterns(
        "POST /v1(beta|alpha)?/models/[A-Za-z0-9._-]{1,128}"
        ":(generateContent|streamGenerateContent|countTokens|embedContent|batchEmbedContents)",
        "GET /v1(beta|alpha)?/models",
        "GET /v1(beta|alpha)?/models/[A-Za-z0-9._-]{1,128}",
    ),
    query=frozenset({"alt", "pageSize", "pageToken"}),
    off_if=("GOOGLE_GENAI_USE_VERTEXAI",),
)

PROVIDERS: Mapping[str, Provider] = {
    provider.name: provider for provider in (ANTHROPIC, OPENAI, GEMINI)
}
KEY_VARIABLES = frozenset(key.name for provider in PROVIDERS.values() for key in provider.keys)


def variables_of_all(providers: Iterable[Provider] = tuple(PROVIDERS.values())) -> frozenset[str]:
    """The variables of all *providers*."""
    return frozenset().union(*(provider.variables for provider in providers))


@dataclasses.dataclass(frozen=True, slots=True)
class Upstream:
    """The address and the credentials with which a session's requests are sent on.

    Attributes:
        address: the base URL, without a slash at its end.
        secrets: one for each header that agents may use; the first one is the default.
        headers: added to each request.
    """

    address: str
    secrets: tuple[Secret, ...] = dataclasses.field(repr=False)
    headers: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False)

    def secret_for(self, header: str) -> Secret:
        """The secret in place of the session's token in that header."""
        return next((secret for secret in self.secrets if secret.header == header), self.secrets[0])


def upstream_of(provider: Provider, environ: Mapping[str, str]) -> Upstream | None:
    """The upstream that an environment describes; None if the proxy cannot serve it."""
    if any(is_set(environ.get(name, "")) for name in provider.off_if):
        return None
    secrets: dict[str, Secret] = {}
    for key in provider.keys:
        value = environ.get(key.name, "").strip()
        if value and value.isprintable() and value.isascii():
            secrets.setdefault(key.header, key.secret(value))
    if not secrets:
        return None
    bases = (environ.get(name, "").strip() for name in provider.bases)
    address = next(filter(None, bases), provider.address).rstrip("/")
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        return None
    headers = environ.get(provider.headers_variable or "", "")
    return Upstream(
        with_version(provider, address), tuple(secrets.values()), _parse_headers(headers)
    )


def with_version(provider: Provider, address: str) -> str:
    """A base URL with the version of the API, which some agents expect and others add."""
    if provider.prefix and not address.endswith(provider.prefix):
        return address + provider.prefix if provider is ANTHROPIC else address
    return address


def is_set(value: str) -> bool:
    """Whether a variable that is a switch is on."""
    return value.strip().lower() not in ("", "0", "false", "no", "off")


def _parse_headers(text: str) -> tuple[tuple[str, str], ...]:
    """The headers of a text with one ``Name: value`` on each line."""
    headers = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon and re.fullmatch(r"[A-Za-z0-9-]+", name.strip()):
            headers.append((name.strip(), value.strip()))
    return tuple(headers)

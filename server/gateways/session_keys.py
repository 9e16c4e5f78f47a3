"""The tokens with which sessions authenticate at the key proxy, and the keys that replace them.

Each session, run and probe has one token, in memory only. The agent gets it in place of every key
of a provider, and the address of the proxy in place of the provider's. A key comes from the most
specific of these environments: the session's ``env``, the ``env`` of its app's token, the command's
own, the server's. Clients choose the first one, so an address in it is never combined with a key
of the others: it would receive the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import secrets
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..sandbox.logins import has_only_api_key
from ..sandbox.policy import SandboxSpec
from .providers import ANTHROPIC, OPENAI, PROVIDERS, Provider, Upstream, is_set, upstream_of

SESSION_KEY_PREFIX = "sk-cf-"
"""Looks like a key, so that it is replaced where keys are replaced in the output of agents."""
PROBE_TOKEN_SECS = 300.0
"""A token that belongs to no session and no run (a check of an agent) is valid for this time."""
HTTP_PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
MAX_CONFIG_BYTES = 1 << 20
CODEX_AUTH, CODEX_CONFIG = ".codex/auth.json", ".codex/config.toml"


@dataclasses.dataclass(slots=True)
class SessionKey:
    """The meaning of a token: a session, and its keys.

    Attributes:
        key: names the session, run or probe.
        owner: the app at the start of the agent; empty for a prewarmed agent.
        upstreams: by provider.
        made_at: monotonic seconds.
    """

    key: str
    token: str = dataclasses.field(repr=False)
    owner: str
    made_at: float
    upstreams: dict[str, Upstream] = dataclasses.field(default_factory=dict)


class Holder(msgspec.Struct, frozen=True):
    """The session or run that a token belongs to.

    Attributes:
        owner: its app; empty for a prewarmed agent.
        is_working: a turn or a run is in progress.
    """

    owner: str
    is_working: bool


class Replacement:
    """The environment and the files that an agent gets instead of keys.

    Attributes:
        environ: variables to set.
        unset: variables to remove.
        files: content by path below the agent's home.
    """

    def __init__(self) -> None:
        self.environ: dict[str, str] = {}
        self.unset: list[str] = []
        self.files: dict[str, bytes] = {}


FindHolder = Callable[[str], Holder | None]


class SessionKeys:
    """The tokens of all sessions.

    Args:
        user_home: the home of the server's user, with the configuration of codex.
        has_keys: whether the key proxy is on. If not, the tokens are for the other gateways.

    Attributes:
        url: the address of the proxy, once it listens.
        domain_port: the port of the proxy for the allowed domains; 0 if it is off.
        find_holder: returns the session or run of a key; None if it has ended.
    """

    def __init__(self, user_home: Path | None, *, has_keys: bool = True) -> None:
        self.url = ""
        self.domain_port = 0
        self._has_keys = has_keys
        self.find_holder: FindHolder = lambda _: None
        self._user_home = user_home
        self._by_key: dict[str, SessionKey] = {}
        self._by_digest: dict[bytes, SessionKey] = {}
        self._making = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_key)

    # A reload of the server.

    def pack(self) -> list[SessionKey]:
        return [*self._by_key.values()]

    def restore(self, keys: Iterable[SessionKey]) -> None:
        """Accept the tokens that an earlier version of the server has given to its agents."""
        for key in keys:
            self._by_key[key.key] = self._by_digest[_digest(key.token)] = key

    # The start of an agent.

    def replace(
        self, spec: SandboxSpec, trusted: Mapping[str, str], chosen: Mapping[str, str]
    ) -> Replacement:
        """Replace the keys in the environment of a program by its session's token. Blocking.

        Args:
            trusted: the variables of the operator, those of the app's token included.
            chosen: the variables that a client chose for the session.
        """
        result = Replacement()
        key, environ, upstreams = self._key_of(spec), {**trusted, **chosen}, {}
        for provider in PROVIDERS.values() if self._has_keys else ():
            upstream = self._upstream_of(provider, spec, trusted, chosen)
            if upstream is not None:
                upstreams[provider.name] = upstream
                self._replace_variables(provider, key, environ, result)
            elif not _is_other_service(provider, trusted, chosen):
                # For example an address of the client, which must not get a key of the operator.
                _hide(provider, environ, chosen, result)
        key.upstreams = upstreams  # at once: requests are being answered meanwhile
        if spec.agent == "codex" and OPENAI.name in key.upstreams:
            self._configure_codex(key, trusted, result)
        if spec.agent == "opencode":
            self._configure_opencode(key, environ, result)
        if self.domain_port:
            address = f"http://session:{key.token}@127.0.0.1:{self.domain_port}"
            result.environ.update(dict.fromkeys(HTTP_PROXY_VARIABLES, address))
            result.environ["NODE_USE_ENV_PROXY"] = "1"
            result.unset += ["ALL_PROXY", "all_proxy"]
        for name in ("NO_PROXY", "no_proxy") if upstreams or self.domain_port else ():
            known = environ.get(name, "")
            result.environ[name] = f"{known},127.0.0.1" if known else "127.0.0.1"
        return result

    def _key_of(self, spec: SandboxSpec) -> SessionKey:
        """The key of a session, which is made at the first start of its agent."""
        with self._making:
            key = self._by_key.get(spec.key)
            if key is None:
                token = SESSION_KEY_PREFIX + secrets.token_urlsafe(32)
                key = SessionKey(spec.key, token, spec.owner, time.monotonic())
                self._by_key[spec.key] = self._by_digest[_digest(token)] = key
        key.owner, key.made_at = spec.owner, time.monotonic()
        return key

    def _upstream_of(
        self,
        provider: Provider,
        spec: SandboxSpec,
        trusted: Mapping[str, str],
        chosen: Mapping[str, str],
    ) -> Upstream | None:
        more = provider.headers_variable
        if any(chosen.get(name) for name in (*provider.bases, *provider.off_if, more or "")):
            return None
        names = [key.name for key in provider.keys]
        if any(name in chosen for name in names):
            trusted = {name: value for name, value in trusted.items() if name not in names}
            trusted = {name: value for name, value in trusted.items() if name != more}
        environ = {**trusted, **{name: chosen[name] for name in names if name in chosen}}
        if provider is OPENAI and spec.agent == "codex":
            environ = {**self._codex_environ(), **environ}
        return upstream_of(provider, environ)

    def _replace_variables(
        self,
        provider: Provider,
        key: SessionKey,
        environ: Mapping[str, str],
        result: Replacement,
    ) -> None:
        for variable in provider.keys:
            if environ.get(variable.name):
                result.environ[variable.name] = key.token
        for base in provider.bases:
            result.environ[base] = self.base_url(provider)
        if provider.headers_variable in environ:
            result.unset.append(str(provider.headers_variable))

    def base_url(self, provider: Provider) -> str:
        """The address of a provider's API at the proxy, as agents expect it."""
        version = provider.prefix if provider is not ANTHROPIC else ""
        return f"{self.url}/{provider.name}{version}"

    # Agents that need more than variables.

    def _codex_environ(self) -> dict[str, str]:
        """The login and the address in the operator's configuration of codex, as variables."""
        environ = {}
        stored = _json(self._read(CODEX_AUTH)) or {}
        if has_only_api_key(stored):
            environ["OPENAI_API_KEY"] = stored["OPENAI_API_KEY"]
        if address := _codex_address(self._codex_config()):
            environ["OPENAI_BASE_URL"] = address
        return environ

    def _codex_config(self) -> dict[str, Any]:
        try:
            return tomllib.loads(self._read(CODEX_CONFIG).decode())
        except (ValueError, RecursionError):
            return {}

    def _configure_codex(
        self, key: SessionKey, environ: Mapping[str, str], result: Replacement
    ) -> None:
        """Set the address of codex's provider, and store the token as its login."""
        config, url = _json(environ.get("CODEX_CONFIG", "").encode()) or {}, self.base_url(OPENAI)
        name, provider = _codex_provider(self._codex_config())
        if provider is None:
            config["openai_base_url"] = url
        else:
            known = config.get("model_providers")
            providers = known if isinstance(known, dict) else {}
            config["model_providers"] = {**providers, name: {**provider, "base_url": url}}
        result.environ["CODEX_CONFIG"] = json.dumps(config)
        login = {"auth_mode": "apikey", "OPENAI_API_KEY": key.token}
        result.files[CODEX_AUTH] = json.dumps(login).encode()
        # Before its first session codex asks the address of this file for the models.
        if (own := _with_address(self._read(CODEX_CONFIG), url)) is not None:
            result.files[CODEX_CONFIG] = own

    def _configure_opencode(
        self, key: SessionKey, environ: Mapping[str, str], result: Replacement
    ) -> None:
        """Set the addresses of opencode's providers: it reads only some from variables."""
        config = _json(environ.get("OPENCODE_CONFIG_CONTENT", "").encode()) or {}
        known = config.get("provider")
        providers = dict(known) if isinstance(known, dict) else {}
        names = {"anthropic": "anthropic", "openai": "openai", "google": "gemini"}
        for name, at_proxy in names.items():
            if at_proxy not in key.upstreams:
                continue
            entry = providers.get(name)
            entry = dict(entry) if isinstance(entry, dict) else {}
            options = entry.get("options")
            options = dict(options) if isinstance(options, dict) else {}
            if "baseURL" in options:
                continue
            version = {"anthropic": "/v1", "openai": "/v1", "gemini": "/v1beta"}[at_proxy]
            options |= {"baseURL": f"{self.url}/{at_proxy}{version}", "apiKey": key.token}
            providers[name] = {**entry, "options": options}
        if providers:
            config["provider"] = providers
            result.environ["OPENCODE_CONFIG_CONTENT"] = json.dumps(config)

    def _read(self, path: str) -> bytes:
        if self._user_home is None:
            return b""
        try:
            with (self._user_home / path).open("rb") as file:
                return file.read(MAX_CONFIG_BYTES)
        except OSError:
            return b""

    # The requests of an agent.

    def token_of(self, spec: SandboxSpec) -> str:
        """The token of a session."""
        return self._key_of(spec).token

    def knows(self, token: str) -> bool:
        """Whether that is the token of a session, which may be starting."""
        return _digest(token) in self._by_digest

    def find_key(self, token: str) -> str | None:
        """The key of the session with that token; None if it has ended."""
        entry = self.find(token)
        return entry[0].key if entry is not None else None

    def find(self, token: str) -> tuple[SessionKey, Holder] | None:
        """The session of a token, if it may use the proxy; None if it has ended."""
        key = self._by_digest.get(_digest(token))
        holder = self._holder_of(key) if key is not None else None
        return (key, holder) if key is not None and holder is not None else None

    def _holder_of(self, key: SessionKey) -> Holder | None:
        holder = self.find_holder(key.key)
        if holder is None and key.key.startswith("probe-"):
            is_new = time.monotonic() - key.made_at < PROBE_TOKEN_SECS
            return Holder(key.owner, is_working=True) if is_new else None
        return holder

    def forget_ended(self) -> None:
        """Forget the tokens of sessions that have ended."""
        for key in tuple(self._by_key.values()):
            is_new = time.monotonic() - key.made_at < PROBE_TOKEN_SECS
            if not is_new and self._holder_of(key) is None:
                self.forget(key.key)

    def forget(self, key: str) -> None:
        """Forget the token of a session, if it has one."""
        session_key = self._by_key.pop(key, None)
        if session_key is not None:
            del self._by_digest[_digest(session_key.token)]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


def _is_other_service(
    provider: Provider, trusted: Mapping[str, str], chosen: Mapping[str, str]
) -> bool:
    """Whether the operator, not the client, has selected a service that needs the variables."""
    is_changed = any(name in chosen for name in (*provider.off_if, *provider.bases))
    return not is_changed and any(is_set(trusted.get(name, "")) for name in provider.off_if)


def _hide(
    provider: Provider,
    environ: Mapping[str, str],
    chosen: Mapping[str, str],
    result: Replacement,
) -> None:
    """Remove the variables of a provider that the client did not choose itself."""
    result.unset += [name for name in provider.variables if name in environ and name not in chosen]


def _json(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _codex_provider(config: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """The provider that codex's configuration selects, if it is not OpenAI itself."""
    name, providers = config.get("model_provider"), config.get("model_providers")
    provider = providers.get(name) if isinstance(providers, dict) else None
    has_address = isinstance(provider, dict) and isinstance(provider.get("base_url"), str)
    return (str(name), provider) if has_address else ("", None)


def _with_address(config: bytes, url: str) -> bytes | None:
    """Return codex's configuration with another address of its provider; None if it has none."""
    try:
        old = _codex_address(tomllib.loads(config.decode()))
        for quote in ('"', "'") if old else ():
            config = config.replace(
                f"{quote}{old}{quote}".encode(), f"{quote}{url}{quote}".encode()
            )
        return config if _codex_address(tomllib.loads(config.decode())) == url else None
    except (ValueError, RecursionError):
        return None


def _codex_address(config: Mapping[str, Any]) -> str:
    _, provider = _codex_provider(config)
    address = provider["base_url"] if provider is not None else config.get("openai_base_url")
    return address if isinstance(address, str) else ""

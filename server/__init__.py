"""clawdforge: a WebSocket-first realtime server for talking to coding agents."""

__version__ = "0.3.0"

"""Sessions: their logs, turns, settings and permissions, and the slots for their agents.

Imports `agents`, `storage` and the root modules. Knows no HTTP, no WebSocket and no JSON-RPC.
"""

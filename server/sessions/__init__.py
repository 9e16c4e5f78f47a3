"""Sessions: their logs, turns, settings and permissions, and the slots for their agents.

Imports `accounts`, `workspace`, `agents`, `agents.process`, `sandbox`, `cluster`, `storage`,
`reload` and the root modules. Knows no HTTP, no WebSocket and no JSON-RPC.
"""

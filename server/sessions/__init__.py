"""Sessions: their log, their turns, their settings, their permissions, and who may have an agent.

Imports `agents`, `storage` and the root modules. Knows no HTTP, no WebSocket and no JSON-RPC.
"""

"""The Agent Client Protocol over WebSocket: clawdforge as an agent to any ACP client.

Imports `ws`, `auth`, `sessions`, `agents`, `cluster`, `storage` and the root modules.
"""

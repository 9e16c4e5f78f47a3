"""The Agent Client Protocol over WebSocket: clawdforge as an agent to any ACP client.

Imports `ws`, `sessions` and what they import.
"""

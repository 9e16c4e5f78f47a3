"""WebSocket connections, and the session protocol on them.

Imports `sessions`, `auth`, `storage` and the root modules.
"""

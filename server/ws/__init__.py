"""WebSocket connections, and the session protocol on them.

Imports `auth`, `uploads`, `sessions`, `cluster` and the root modules.
"""

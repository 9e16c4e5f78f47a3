"""WebSocket connections, and the session protocol on them.

Imports `sessions`, `uploads`, `auth`, `storage` and the root modules.
"""

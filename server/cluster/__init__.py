"""Several servers on one database: which of them runs which session, and how they reach each other.

Imports `storage` and the root modules. Knows no agents, no HTTP and no WebSocket.
"""

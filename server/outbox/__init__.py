"""Webhooks and push: what an app learns without a socket.

Imports `auth`, `sessions`, `storage` and the root modules.
"""

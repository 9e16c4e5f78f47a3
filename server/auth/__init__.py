"""Authentication: the apps' tokens, the credentials of requests, and tickets.

Imports `storage`, the writer of `sessions` and the root modules.
"""

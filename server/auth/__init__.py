"""Authentication: the apps' tokens, the credentials of requests, tickets, and their prompts.

Imports `uploads`, `sessions`, `storage` and the root modules.
"""

"""Authentication: the apps' tokens, tickets, credentials, and prompts that credentials send.

Imports `uploads`, `sessions`, `accounts`, `sandbox`, `storage` and the root modules.
"""

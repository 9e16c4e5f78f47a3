"""Who may do what: the apps' tokens, the tickets of sockets, the networks of each.

Imports `storage` and the root modules.
"""

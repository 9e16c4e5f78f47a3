"""The resources of the HTTP interface, one module each.

Imports `web` and what it imports. No resource imports another.
"""

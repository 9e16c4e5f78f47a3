"""The full-text index over everything that was said in sessions, in a database of its own.

Imports `storage`, `storage.drivers` and the root modules. A deleted index is built again.
"""

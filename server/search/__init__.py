"""The full-text index over everything that was said in sessions, in a database of its own.

Imports the root modules and `storage`. The index can be deleted; the server makes it again.
"""

"""A reload: the server becomes its next version, and keeps its pid, its agents and its listeners.

Imports the root modules.
"""

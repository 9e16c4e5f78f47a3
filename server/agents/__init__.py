"""Coding agents as processes: starting them, talking to them, ending them.

Imports `storage` and the root modules. A session is known here only as the `Listener` of an agent.
"""

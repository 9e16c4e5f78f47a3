"""Coding agents: starting, prompting, configuring and ending them.

Imports `storage` and the root modules. It knows a session only as an `AgentObserver`.
"""

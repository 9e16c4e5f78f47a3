"""Coding agents: starting, prompting, configuring and ending them.

Imports `agents.process`, `sandbox` and the root modules. A session is only an `AgentObserver` here.
"""

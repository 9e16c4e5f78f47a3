"""Agents through acpx's library: a Node process (`host.mjs`) starts agents and loads conversations,
and the server is a proxy on each agent's stdin and stdout (`stdio_proxy`).

Imports `agents`, `agents.process`, `sandbox`, `reload` and the root modules.
"""

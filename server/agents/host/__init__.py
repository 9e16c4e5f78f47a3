"""Agents through acpx's library: a Node process (`host.mjs`) makes and loads their conversations,
and the server relays each agent's stdin and stdout itself (`stdio_proxy`).

Imports `agents` and `agents.process`; never `agents.cli`.
"""

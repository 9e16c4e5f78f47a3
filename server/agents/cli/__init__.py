"""Agents through acpx's command line, one command for each prompt.

Imports `agents`, `agents.process`, and the stdio proxy of `agents.host`.
"""

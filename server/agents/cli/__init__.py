"""Agents through acpx's command line, one command for each prompt.

Imports `agents`, `agents.process`, `sandbox`, `reload` and the root modules.
"""

"""The operator's commands: `python -m server COMMAND`, with or without a running server.

Imports every package above it. Commands import `admin`, and no other command.
"""

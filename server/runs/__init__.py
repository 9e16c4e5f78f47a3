"""The one-shot `/run`: a bare `claude -p`, or one prompt to another agent.

Imports `uploads`, `sessions`, `agents`, `storage` and the root modules.
"""

"""The one-shot `/run`: a bare `claude -p`, or one prompt to another agent.

Imports `sessions`, `agents`, `uploads`, `storage` and the root modules.
"""

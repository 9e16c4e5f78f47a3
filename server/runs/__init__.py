"""The one-shot `/run`: a bare `claude -p`, or one prompt to another agent.

Imports `uploads`, `sessions`, `accounts`, `agents`, `agents.process`, `sandbox`, `storage`,
`storage.drivers` and the root modules.
"""

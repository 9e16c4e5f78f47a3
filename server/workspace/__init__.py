"""The files of a session's folder: listing, reading, writing, archives, snapshots and worktrees.

Agents may change the folder at any moment, so every path is opened folder by folder, without links.

Imports `agents.process`, `sandbox`, `workspace.snapshotter` and the root modules.
"""

"""Uploaded files, which a prompt names by their tokens.

Imports `sandbox`, `storage` and the root modules.
"""

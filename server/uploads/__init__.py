"""Uploaded files, which a prompt names by their tokens.

Imports `storage` and the root modules.
"""

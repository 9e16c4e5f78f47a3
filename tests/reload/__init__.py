"""Reloads: the server becomes its next version, and no turn ends."""

"""Wiring of `app.py`: connections between packages, periodic tasks, parts of a reload.

Imports every package above it.
"""

"""Wiring of `app.py`: connections between packages, and parts of a reload that no package owns.

Imports every package above it.
"""

"""Wiring of `app.py`: the parts of a reload that no other package owns.

Imports every package that serves.
"""

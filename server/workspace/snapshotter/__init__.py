"""A program that takes snapshots of folders: see ``snapshotter.py``.

Runs alone, with the standard library only.
"""

"""Processes: started under a supervisor, tagged, searched and ended.

Imports the root modules only. `spawn` and `supervise` run as programs of their own.
"""

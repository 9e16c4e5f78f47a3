"""Processes: started under a supervisor, tagged, searched and ended.

Imports `sandbox` and the root modules. `spawn` and `supervise` run as programs of their own.
"""

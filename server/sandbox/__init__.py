"""The sandbox around each agent: its levels, its policy, and the launcher that applies it.

Imports the root modules. `restrict` and `attempts` run without site-packages.
"""

"""The database engines that the storage can use.

Imports the root modules. A driver knows no table.
"""

"""Accounts of the apps: their own limits, their budgets, and their spending so far.

Imports `agents` and the root modules.
"""

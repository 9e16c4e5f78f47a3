"""The demo agent, a program of its own: a scripted agent that needs no account and no model.

Imports nothing of the server, and nothing but Python's standard library.
"""

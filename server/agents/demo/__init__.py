"""The demo agent, a program of its own: a scripted agent that needs no account and no model.

It imports nothing of the server, and nothing but Python's standard library. Its modules import
each other relatively, so that the program runs as a file and as a module of the server.
"""

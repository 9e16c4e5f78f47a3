"""``python -m server connect``: an ACP agent on stdin and stdout, for editors.

It passes messages between an editor and a server's ``/acp``. It is a client like any other, and
imports only the JSON codec of the server, so that it starts fast.
"""

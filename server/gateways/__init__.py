"""The proxies through which agents reach the APIs of models, and other machines.

The key proxy inserts the keys of providers, so that no key is in a sandbox.

Imports `runs`, `sessions`, `agents`, `sandbox`, `reload` and the root modules.
"""

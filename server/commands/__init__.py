"""The operator's commands: `python -m server COMMAND`, beside a running server or without one.

Imports every package. No command imports another, but all may import `admin`.
"""

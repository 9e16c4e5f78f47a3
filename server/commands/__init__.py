"""The operator's commands: ``python -m server COMMAND``, beside a running server or without one."""

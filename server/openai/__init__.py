"""The shapes of OpenAI's chat API: requests as prompts, turns as completions, errors.

Imports `sessions`, `agents` and the root modules. Nothing here does I/O.
"""

"""The shapes of OpenAI's chat API: requests as prompts, turns as completions, errors.

Imports the root modules, `agents` and `sessions`. Nothing here does I/O.
"""

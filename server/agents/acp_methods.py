"""The names of ACP's requests that open a conversation or change a setting of it."""

SET_MODE = "session/set_mode"
SET_MODEL = "session/set_model"
SET_OPTION = "session/set_config_option"
SETTERS = frozenset({SET_MODE, SET_MODEL, SET_OPTION})
FORK = "session/fork"
SESSION_METHODS = frozenset({"session/new", "session/load", "session/resume", FORK})
"""The requests that open a conversation. The agent's response contains its settings."""
STARTING_METHODS = SESSION_METHODS | {"initialize"}
"""The requests with which acpx begins to use an agent."""

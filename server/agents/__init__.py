"""What stands between a session and its agent: the interface, and its implementations."""

"""The HTTP and WebSocket routes: thin, one module a resource."""

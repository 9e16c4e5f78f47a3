"""HTTP: the listener, the middleware, bodies and responses, event streams, the OpenAPI document.

Imports every package above it.
"""

"""The resources of the HTTP interface, one module each. Every module of this package is served.

Imports every package above it. No resource imports another.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType

from aiohttp import web

from ..endpoint import Endpoint

ENDPOINTS = web.AppKey("endpoints", Sequence[Endpoint])


def modules() -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]


def endpoints() -> list[Endpoint]:
    """Return the REST calls that the modules declare."""
    return [
        value
        for module in modules()
        for value in vars(module).values()
        if isinstance(value, Endpoint)
    ]


def add_resources(app: web.Application) -> None:
    """Serve all resources: REST calls, and the ``routes`` of modules without a description.

    A module may also have a function ``prepare_app(app)``, which is called once.
    """
    app[ENDPOINTS] = endpoints()
    for endpoint in app[ENDPOINTS]:
        endpoint.add_to(app.router)
    for module in modules():
        app.add_routes(getattr(module, "routes", ()))
        if hasattr(module, "prepare_app"):
            module.prepare_app(app)

"""The middleware that makes a span for each request, if traces are sent."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..tracing import Tracer
from .context import REQUEST_ID


def tracing_middleware(tracer: Tracer) -> Middleware:
    """Return the middleware that makes a span for each request of an app or the operator."""

    @web.middleware
    async def trace_request(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "*"
        with tracer.request(request[REQUEST_ID], request.method, route, request.headers) as span:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                span.set_status(error.status)
                raise
            except Exception as error:
                code = getattr(error, "code", None)
                span.set_status(int(getattr(error, "status", 500)), str(code or "internal"))
                raise
            span.set_status(response.status)
            return response

    return trace_request

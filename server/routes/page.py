"""The pages for browsers: their own files, and their libraries from node_modules."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from pathlib import Path

from aiohttp import hdrs, web

from ..errors import not_found
from ..negotiation import accepts_coding

ROOT = Path(__file__).parent.parent.parent
STATIC = ROOT / "static"
MODULES = ROOT / "node_modules"
LIBRARIES = ("marked", "dompurify", "@highlightjs/cdn-assets", "diff", "ansi-sequence-parser")
MERMAID = "@mermaid-js/tiny/dist/mermaid.tiny.js"
LIBRARY_FILES = {
    "swagger-ui-dist/swagger-ui-bundle.js",
    "swagger-ui-dist/swagger-ui.css",
    "katex/dist/katex.mjs",
    MERMAID,
}
PAGES = {"/": "index.html", "/docs": "docs.html"}

# The frame in which diagrams are drawn. Its origin is opaque, so its own files are foreign to it.
FRAME = "diagram.html"
FRAME_FILES = {f"/static/{FRAME}", f"/lib/{MERMAID}"}
FRAME_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' %s",
        "style-src 'unsafe-inline'",  # what the library writes into its own picture
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
        "sandbox allow-scripts",
    ]
)

_IMPORT_MAP = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

_SHORT = ("If-None-Match", "If-Modified-Since", "Range")

routes = web.RouteTableDef()


def content_security_policy(page: bytes) -> str:
    """A page's policy: nothing from elsewhere, nothing inline but its import map."""
    hashes = "".join(f" {_source(found)}" for found in _IMPORT_MAP.findall(page))
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self'{hashes}",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self'",
            "frame-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def _source(script: bytes) -> str:
    """What allows that inline script, and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


@routes.get("/")
@routes.get("/docs")
async def page(request: web.Request) -> web.StreamResponse:
    """Read anew each time: a policy fits its page, also when that is exchanged under us."""
    body = await asyncio.to_thread((STATIC / PAGES[request.path]).read_bytes)
    tag = hashlib.sha256(body).hexdigest()[:32]
    headers = {"Content-Security-Policy": content_security_policy(body)}
    if any(known.value in (tag, "*") for known in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(body=body, content_type="text/html", headers=headers)
    response.etag = tag
    return _compressed(request, response)


@routes.get("/static/{path:.+}")
async def static_file(request: web.Request) -> web.StreamResponse:
    return await _file(request, STATIC, request.match_info["path"])


@routes.get("/lib/{path:.+}")
async def library_file(request: web.Request) -> web.StreamResponse:
    path = request.match_info["path"]
    if path in LIBRARY_FILES:
        return await _file(request, MODULES, path)
    for library in LIBRARIES:
        if path.startswith(f"{library}/"):
            return await _file(request, MODULES / library, path.removeprefix(f"{library}/"))
    raise not_found("file")


async def _file(request: web.Request, folder: Path, path: str) -> web.StreamResponse:
    found = await asyncio.to_thread(_find, folder, path)
    if found is None:
        raise not_found("file")
    response = web.FileResponse(found)
    if request.path in FRAME_FILES:
        response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    if path == FRAME:
        scripts = _INLINE.findall(await asyncio.to_thread(found.read_bytes))
        response.headers["Content-Security-Policy"] = FRAME_POLICY % " ".join(map(_source, scripts))
    return _compressed(request, response)


def _compressed(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """A third of the bytes; not where the answer may be a 304 or a part of the file."""
    response.headers["Cache-Control"] = "no-cache"  # asked for again each time, by its tag
    response.headers["Vary"] = "Accept-Encoding"
    if request.method == "GET" and not any(name in request.headers for name in _SHORT):
        accepted = request.headers.getall(hdrs.ACCEPT_ENCODING, [])
        if accepts_coding(accepted, "gzip"):
            response.enable_compression(web.ContentCoding.gzip)
    return response


def _find(folder: Path, path: str) -> Path | None:
    """The file *path* below *folder*; names that lead out of it do not exist."""
    if path.endswith("/"):
        return None
    try:
        wanted = (folder / path).resolve()
        return wanted if wanted.is_relative_to(folder.resolve()) and wanted.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None  # a name too long, a link in a circle, a NUL


def set_up(app: web.Application) -> None:
    app.add_routes(routes)

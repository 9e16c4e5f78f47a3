"""The web pages: their own files, and libraries from node_modules."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import math
import mimetypes
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.web_request import BaseRequest
from multidict import CIMultiDict

from ... import installation
from ...errors import Error, ErrorCode, not_found
from ..built_page import UNVERSIONED, BuiltPage
from ..context import REQUEST_ID
from ..negotiation import accepts_coding
from ..responses import error_response

STATIC = installation.STATIC_FOLDER
MODULES = installation.NODE_MODULES
BUILT = BuiltPage(MODULES / ".page")
LIBRARIES = (
    *("marked", "dompurify", "@highlightjs/cdn-assets", "diff", "ansi-sequence-parser"),
    *("@fontsource-variable/geist", "@fontsource-variable/geist-mono"),
)
MERMAID = "@mermaid-js/tiny/dist/mermaid.tiny.js"
LIBRARY_FILES = {
    "swagger-ui-dist/swagger-ui-bundle.js",
    "swagger-ui-dist/swagger-ui.css",
    "katex/dist/katex.mjs",
    "uqr/dist/index.mjs",
    MERMAID,
}
PAGE_FILES = {"/": "index.html", "/docs": "docs.html"}

# The frame that draws diagrams. Its origin is opaque, so even its own files are cross-origin.
SERVICE_WORKER = "sw.js"
FRAME = "diagram.html"
FRAME_FILES = {f"/static/{FRAME}", f"/lib/{MERMAID}"}
TRUSTED_TYPES = ("require-trusted-types-for 'script'", "trusted-types clawdforge")
FRAME_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self' %s",
        "style-src 'unsafe-inline'",  # the library writes styles into its SVG
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'self'",
        "sandbox allow-scripts",
    ]
)

_IMPORT_MAP = re.compile(rb'<script type="importmap">(.*?)</script>', re.DOTALL)
_INLINE = re.compile(rb"<script>(.*?)</script>", re.DOTALL)

REVALIDATED = "no-cache"  # by its tag, for each use
FOREVER = "public, max-age=31536000, immutable"  # another version has another address

MAX_COMPRESSED_FILE_BYTES = 8 << 20
MAX_CACHE_BYTES = 16 << 20
SLICE_BYTES = 64 << 10
TYPES = mimetypes.MimeTypes()
TYPES.add_type("text/javascript", ".js")
TYPES.add_type("text/javascript", ".mjs")

_CONDITIONAL_HEADERS = ("If-None-Match", "If-Modified-Since", "Range")

routes = web.RouteTableDef()


def content_security_policy(page: bytes) -> str:
    """Return the policy of a page: only own files, and no inline script but its import map.

    The page with the import map also requires Trusted Types (``static/trusted.js``).
    Swagger UI, which ``/docs`` shows, writes markup itself.
    """
    hashes = "".join(f" {_csp_source(script)}" for script in _IMPORT_MAP.findall(page))
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self'{hashes}",
            "style-src 'self'",
            "img-src 'self' data:",
            "media-src data:",
            "font-src 'self'",
            "connect-src 'self'",
            "manifest-src 'self'",
            "worker-src 'self'",
            "frame-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            *(TRUSTED_TYPES if hashes else ()),
        ]
    )


def _csp_source(script: bytes) -> str:
    """Return the source expression that allows only that inline script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"


@routes.get("/")
@routes.get("/docs")
async def page(request: web.Request) -> web.StreamResponse:
    """Send a page. It is read for each request, so that its policy matches an updated file."""
    body = await asyncio.to_thread(_read_page, PAGE_FILES[request.path])
    tag = hashlib.sha256(body).hexdigest()[:32]
    headers = {"Content-Security-Policy": content_security_policy(body)}
    if any(known.value in (tag, "*") for known in request.if_none_match or ()):
        response = web.Response(status=304, headers=headers)
    else:
        response = web.Response(body=body, content_type="text/html", headers=headers)
    response.etag = tag
    return _finish_page(request, response)


def _read_page(name: str) -> bytes:
    built = BUILT.page(STATIC) if name == "index.html" else None
    return (built or STATIC / name).read_bytes()


@routes.get("/static/{path:.+}")
async def static_file(request: web.Request) -> web.StreamResponse:
    """Send a minified file if the request names its version, and otherwise the source."""
    path, version = request.match_info["path"], request.query.get("v")
    built = await asyncio.to_thread(BUILT.find_file, STATIC, path, version)
    if built is not None:
        caching = REVALIDATED if path in UNVERSIONED else FOREVER
        return await _send_file(request, built.parent, path, caching=caching)
    return await _send_file(request, STATIC, path)


@routes.get("/lib/{path:.+}")
async def library_file(request: web.Request) -> web.StreamResponse:
    path = request.match_info["path"]
    if path in LIBRARY_FILES:
        return await _send_file(request, MODULES, path)
    for library in LIBRARIES:
        if path.startswith(f"{library}/"):
            return await _send_file(request, MODULES / library, path.removeprefix(f"{library}/"))
    raise not_found("file")


async def _send_file(
    request: web.Request, folder: Path, path: str, *, caching: str = REVALIDATED
) -> web.StreamResponse:
    located = await asyncio.to_thread(_find_file, folder, path)
    if located is None:
        raise not_found("file")
    file, stat = located
    if not _preconditions_hold(request, stat):
        raise Error(ErrorCode.PRECONDITION_FAILED, "the file has changed")
    if not _may_send_range(request, stat):
        request = request.clone(headers=_headers_without(request, hdrs.RANGE))
    if not _is_satisfiable(request, stat.st_size):
        error = Error(ErrorCode.RANGE_NOT_SATISFIABLE, f"the file has {stat.st_size} bytes")
        refusal = error_response(error, request[REQUEST_ID])
        refusal.headers[hdrs.CONTENT_RANGE] = f"bytes */{stat.st_size}"
        return refusal
    headers: dict[str, str] = {
        hdrs.CACHE_CONTROL: caching,
        hdrs.VARY: hdrs.ACCEPT_ENCODING,
        hdrs.CONTENT_TYPE: TYPES.guess_type(file.name)[0] or "application/octet-stream",
    }
    if path == SERVICE_WORKER:  # for the whole page, also below a path
        headers["Service-Worker-Allowed"] = "../"
    if request.path in FRAME_FILES:
        headers["Cross-Origin-Resource-Policy"] = "cross-origin"
    if path == FRAME:
        scripts = _INLINE.findall(await asyncio.to_thread(file.read_bytes))
        headers["Content-Security-Policy"] = FRAME_POLICY % " ".join(map(_csp_source, scripts))
    if _accepts_compressed(request) and stat.st_size <= MAX_COMPRESSED_FILE_BYTES:
        return await _send_compressed(request, file, stat, headers)
    response = _FileResponse(file, headers=headers)
    await response.prepare(request)
    return response


class _FileResponse(web.FileResponse):
    """A file response that is prepared once; aiohttp prepares a returned response again."""

    async def prepare(self, request: BaseRequest) -> AbstractStreamWriter | None:
        return None if self.prepared else await super().prepare(request)


def _tag_of(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"  # the same tag as aiohttp's


def _preconditions_hold(request: web.Request, stat: os.stat_result) -> bool:
    """Return whether the preconditions of the request hold."""
    if (tags := request.if_match) is not None:
        return any(tag.value in (_tag_of(stat), "*") and not tag.is_weak for tag in tags)
    since = request.if_unmodified_since
    return since is None or stat.st_mtime <= since.timestamp()


def _may_send_range(request: web.Request, stat: os.stat_result) -> bool:
    """Return whether a range may be sent: the client has other ranges of the same version."""
    known = request.headers.get(hdrs.IF_RANGE)
    if known is None or known == f'"{_tag_of(stat)}"':
        return True
    date = request.if_range
    return date is not None and math.ceil(stat.st_mtime) == date.timestamp()


def _headers_without(request: web.Request, name: str) -> CIMultiDict[str]:
    return CIMultiDict(
        (key, value) for key, value in request.headers.items() if key.lower() != name.lower()
    )


def _is_satisfiable(request: web.Request, size: int) -> bool:
    try:
        wanted = request.http_range
    except ValueError:
        return False
    return wanted.start is None or wanted.start < size


def _accepts_compressed(request: web.Request) -> bool:
    """Return whether the client accepts the whole file in compressed form."""
    if request.method != "GET" or any(name in request.headers for name in _CONDITIONAL_HEADERS):
        return False
    return accepts_coding(request.headers.getall(hdrs.ACCEPT_ENCODING, []), "gzip")


async def _send_compressed(
    request: web.Request, file: Path, stat: os.stat_result, headers: Mapping[str, str]
) -> web.StreamResponse:
    body = memoryview(await request.app[COMPRESSED_FILES].get(file, stat))
    response = web.StreamResponse(headers={**headers, hdrs.CONTENT_ENCODING: "gzip"})
    response.content_length = len(body)
    response.etag = _tag_of(stat)
    response.last_modified = stat.st_mtime
    await response.prepare(request)
    for start in range(0, len(body), SLICE_BYTES):  # a whole write would copy the file
        await response.write(body[start : start + SLICE_BYTES])
    await response.write_eof()
    return response


class CompressedFiles:
    """A cache of compressed files. Anybody may request them, as often as they like."""

    def __init__(self, compress: Callable[[Path], bytes] | None = None) -> None:
        self._compress = compress or gzip_file
        self._lock = asyncio.Lock()
        self._files: dict[Path, tuple[tuple[int, int], bytes]] = {}

    async def get(self, file: Path, stat: os.stat_result) -> bytes:
        """Return the file in gzip format."""
        version = stat.st_mtime_ns, stat.st_size
        async with self._lock:
            known, data = self._files.pop(file, (None, b""))
            if known != version:
                data = await asyncio.to_thread(self._compress, file)
            self._files[file] = version, data
            while sum(len(data) for _, data in self._files.values()) > MAX_CACHE_BYTES:
                del self._files[next(iter(self._files))]
            return data


COMPRESSED_FILES = web.AppKey("compressed-files", CompressedFiles)


def gzip_file(file: Path) -> bytes:
    return gzip.compress(file.read_bytes(), 6, mtime=0)


def _finish_page(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Add the headers of a page, and compress it if the client accepts that."""
    response.headers["Cache-Control"] = REVALIDATED
    response.headers["Vary"] = "Accept-Encoding"
    if _accepts_compressed(request):
        response.enable_compression(web.ContentCoding.gzip)
    return response


def _find_file(folder: Path, path: str) -> tuple[Path, os.stat_result] | None:
    """Find the file *path* in *folder*; a path that leaves the folder is not found."""
    if path.endswith("/"):
        return None
    try:
        wanted = (folder / path).resolve()
        if wanted.is_relative_to(folder.resolve()) and wanted.is_file():
            return wanted, wanted.stat()
    except (OSError, RuntimeError, ValueError):
        pass  # a name that is too long, a circular link, a NUL
    return None


def prepare_app(app: web.Application) -> None:
    app[COMPRESSED_FILES] = CompressedFiles()

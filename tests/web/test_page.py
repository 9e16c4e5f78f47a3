"""The browser's page and its files: the served paths and their headers."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

from server.agents.catalog import find_node
from server.web import built_page
from server.web.resources import page as page_module

from ..conftest import Serve
from ..support.harness import ROOT, TIMEOUT_SECS, Client, LocalServer

JAVASCRIPT = ("text/javascript", "application/javascript")
NODE = find_node()
SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


async def ask(server: LocalServer, target: bytes, head: bytes = b"") -> tuple[int, bytes]:
    """The status and the body of a GET whose target is sent literally; clients normalise theirs."""
    url = urlsplit(server.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    try:
        head += b"Host: localhost\r\nConnection: close\r\n\r\n"
        writer.write(b"GET %b HTTP/1.1\r\n%b" % (target, head))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
        await writer.wait_closed()
    return int(head.split()[1]), body


def directives(policy: str) -> dict[str, list[str]]:
    return {name: values for name, *values in (part.split() for part in policy.split(";"))}


async def test_page_policy_allows_only_own_origin(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    async with http.get(server.url + "/") as response:
        page = await response.text()
        assert response.status == 200
        assert response.content_type == "text/html"
        policy = directives(response.headers["Content-Security-Policy"])
    assert policy["default-src"] == ["'none'"]
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == ["'none'"]
    assert policy.pop("require-trusted-types-for") == ["'script'"]
    assert policy.pop("trusted-types") == ["clawdforge"]
    for name, values in policy.items():
        for value in values:
            assert "unsafe" not in value, name
            assert re.fullmatch(r"'self'|'none'|data:|'sha256-[\w+/]+=*'", value), name
    # Check that the import map is the only inline script, byte for byte.
    inline = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline]
    assert policy["script-src"] == ["'self'", *(f"'sha256-{one}'" for one in hashes)]
    assert len(inline) == 1
    assert not re.search(r"<style|\sstyle=|\son\w+=", page)


async def test_policy_matches_page_that_was_updated_while_server_runs(
    serve: Serve, http: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an upgrade: the policy allows the import map of the new page."""
    monkeypatch.setattr(page_module, "STATIC", tmp_path)
    server = await serve()
    seen: set[str] = set()
    for name in ("old", "new"):
        (tmp_path / "index.html").write_text(f'<script type="importmap">{name}</script>')
        digest = base64.b64encode(hashlib.sha256(name.encode()).digest()).decode()
        # With the tag of the old page the new one comes whole.
        async with http.get(server.url + "/", headers={"If-None-Match": ", ".join(seen)}) as page:
            assert name in await page.text()
            assert f"'sha256-{digest}'" in page.headers["Content-Security-Policy"]
            seen.add(page.headers["ETag"])
    assert len(seen) == 2


async def test_minified_files_are_served_while_they_match_the_sources(
    serve: Serve, http: aiohttp.ClientSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, folder = tmp_path / "static", tmp_path / "page"
    shutil.copytree(ROOT / "static", sources)
    built = await asyncio.create_subprocess_exec(
        NODE, "server/web/bundle_page.mjs", folder, cwd=ROOT
    )
    assert await built.wait() == 0
    monkeypatch.setattr(built_page, "LOOK_EVERY_SECS", 0)
    monkeypatch.setattr(page_module, "STATIC", sources)
    monkeypatch.setattr(page_module, "BUILT", built_page.BuiltPage(folder))
    server = await serve()

    async def get(path: str) -> tuple[str, str]:
        async with http.get(f"{server.url}/{path}") as response:
            assert response.status == 200, path
            return await response.text(), response.headers["Cache-Control"]

    page, caching = await get("")
    assert caching == "no-cache"
    named = re.findall(r'(?:href|src)="(static/[^"]*\.(?:js|css)[^"]*)"', page)
    named += re.findall(r'"\./(static/lib-[^"]*)"', page)
    assert len(named) > 8
    for path in named:
        text, caching = await get(path)
        assert "immutable" in caching, path
        # A relative import of a chunk must be one that is served, too.
        for other in re.findall(r'(?:from|import)\s*\(?"\./([^"]*)"', text):
            assert "immutable" in (await get(f"static/{other}"))[1], other
    (app,) = (path for path in named if path.startswith("static/app.js"))
    assert (await get("static/app.js"))[0] == (sources / "app.js").read_text("utf-8")
    # An old address, and a version that was made up, get the sources, for the moment.
    wrong = f"static/app.js?v={'0' * 12}"
    assert (await get(wrong))[1] == "no-cache"

    (sources / "views" / "dom.js").write_text("// as edited by a developer")
    page, _ = await get("")
    assert 'src="static/app.js"' in page
    assert (await get(app))[1] == "no-cache"


async def test_docs_page_has_same_policy_and_no_inline_code(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    async with http.get(server.url + "/docs") as response:
        page = await response.text()
        assert (response.status, response.content_type) == (200, "text/html")
        policy = response.headers["Content-Security-Policy"]
    async with http.get(server.url + "/") as response:
        whole = response.headers["Content-Security-Policy"]
    plain = re.sub(r" 'sha256-[^']*'|; (require-)?trusted-types[^;]*", "", whole)
    assert policy == plain
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)
    for path in re.findall(r'(?:href|src)="([^"]*)"', page):
        assert not path.startswith(("/", "http")), "it may be served below a prefix"
        async with http.get(f"{server.url}/{path}") as response:
            assert response.status == 200, path
    # Of that library nothing else is served.
    async with http.get(server.url + "/lib/swagger-ui-dist/oauth2-redirect.html") as response:
        assert response.status == 404


async def test_every_file_that_page_names_is_served(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    page = (ROOT / "static" / "index.html").read_text("utf-8")
    (import_map,) = re.findall(r'type="importmap">(.*?)</script>', page, re.DOTALL)
    named = {*json.loads(import_map)["imports"].values()}
    named |= set(re.findall(r'(?:href|src)="([^"]*)"', page))
    assert len(named) > 5
    for path in sorted(named):
        assert not path.startswith("/"), "it would leave a proxy's prefix"
        async with http.get(f"{server.url}/{path}") as response:
            assert response.status == 200, path
            assert await response.read(), path


async def test_every_file_has_its_content_type(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    types = {
        ".js": JAVASCRIPT,
        ".css": ("text/css",),
        ".html": ("text/html",),
        ".svg": ("image/svg+xml",),
        ".png": ("image/png",),
        ".webmanifest": ("application/manifest+json",),
    }
    found = (path for path in (ROOT / "static").rglob("*") if path.is_file())
    files = [path for path in found if not path.name.endswith(".d.ts")]  # not in the image
    assert {path.suffix for path in files} <= types.keys()
    for path in files:
        async with http.get(f"{server.url}/{path.relative_to(ROOT)}") as response:
            assert response.status == 200, path
            assert response.content_type in types[path.suffix], path
            find_built = page_module.BUILT.find_file
            built = await asyncio.to_thread(find_built, ROOT / "static", path.name, None)
            assert await response.read() == (built or path).read_bytes()


async def test_diagram_frame_is_sandboxed(server: LocalServer, http: aiohttp.ClientSession) -> None:
    async with http.get(server.url + "/static/diagram.html") as response:
        page = await response.text()
        policy = directives(response.headers["Content-Security-Policy"])
    assert policy["sandbox"] == ["allow-scripts"]  # no origin, no storage, no navigation
    assert policy["default-src"] == policy["form-action"] == policy["base-uri"] == ["'none'"]
    assert policy["frame-ancestors"] == ["'self'"]
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy["script-src"] == ["'self'", f"'sha256-{digest}'"]
    assert policy.keys() & {"connect-src", "img-src", "font-src", "frame-src"} == set()
    # The frame has an opaque origin: only the files that it loads are readable across origins.
    own = {"diagram.html", *re.findall(r'src="([^"]*)"', page)}
    for path in own | {"app.js", "../lib/katex/dist/katex.mjs"}:
        async with http.get(f"{server.url}/static/{path}") as response:
            assert response.status == 200, path
            expected = "cross-origin" if path in own else "same-origin"
            assert response.headers["Cross-Origin-Resource-Policy"] == expected, path


async def test_libraries_come_from_node_modules(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    for library in (
        "marked/lib/marked.esm.js",
        "dompurify/dist/purify.es.mjs",
        "diff/libesm/diff/base.js",
        "ansi-sequence-parser/dist/index.js",
        "katex/dist/katex.mjs",
    ):
        async with http.get(f"{server.url}/lib/{library}") as response:
            assert response.status == 200
            assert response.content_type in JAVASCRIPT
            assert await response.read() == (ROOT / "node_modules" / library).read_bytes()
    for other in ("acpx/package.json", "marked", "markedx/a.js", ".package-lock.json", ""):
        async with http.get(f"{server.url}/lib/{other}") as response:
            assert response.status == 404, other


async def test_every_response_has_security_headers(
    server: LocalServer, http: aiohttp.ClientSession
) -> None:
    lib = "/lib/marked/lib/marked.esm.js"
    for path in ("/", "/static/app.js", lib, "/static/none", "/healthz", "/sessions", "/nowhere"):
        async with http.get(server.url + path) as response:
            assert {name: response.headers.get(name) for name in SECURITY} == SECURITY, path


async def test_unchanged_file_gets_304(server: LocalServer, http: aiohttp.ClientSession) -> None:
    for path in ("/", "/static/app.js"):
        async with http.get(server.url + path) as response:
            assert response.headers["Cache-Control"] == "no-cache"
            etag = response.headers["ETag"]
        async with http.get(server.url + path, headers={"If-None-Match": etag}) as response:
            assert response.status == 304
            assert await response.read() == b""
        async with http.head(server.url + path) as response:
            assert response.status == 200


async def test_files_are_sent_compressed(server: LocalServer, http: aiohttp.ClientSession) -> None:
    async with http.get(server.url + "/static/app.js") as response:
        assert response.headers["Content-Encoding"] in ("gzip", "deflate")
        assert response.headers["Vary"] == "Accept-Encoding"
        modified = response.headers["Last-Modified"]
        whole = await response.read()  # the unmodified file
    plain = {"Accept-Encoding": "identity"}
    async with http.get(server.url + "/static/app.js", headers=plain) as response:
        assert "Content-Encoding" not in response.headers
        assert await response.read() == whole
    # An answer without the file in it has no compressed nothing in it either.
    head = b"accept-encoding: gzip\r\nif-modified-since: %b\r\n" % modified.encode()
    assert await ask(server, b"/static/app.js", head) == (304, b"")
    head = b"accept-encoding: gzip\r\nrange: bytes=0-3\r\n"
    assert await ask(server, b"/static/app.js", head) == (206, whole[:4])


async def test_file_is_sent_once(
    server: LocalServer, http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {"Accept-Encoding": "identity"}
    async with http.get(server.url + "/static/app.js", headers=plain) as response:
        tag, whole = response.headers["ETag"], await response.read()
    for head, status, body in [
        ({"If-None-Match": tag}, 304, b""),
        ({"Range": "bytes=0-3"}, 206, whole[:4]),
        ({"Range": "bytes=0-3", "If-Range": '"another"'}, 200, whole),
    ]:
        async with http.get(server.url + "/static/app.js", headers={**plain, **head}) as response:
            assert (response.status, await response.read()) == (status, body)
    async with http.head(server.url + "/static/app.js", headers=plain) as response:
        assert response.status == 200
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


async def test_page_preloads_what_it_imports_at_once() -> None:
    """Without preloads a phone requests the modules one after the other."""
    page = (ROOT / "static" / "index.html").read_text("utf-8")
    named = re.findall(
        r'<(?:link rel="modulepreload" href|script type="module" src)="([^"]*)"', page
    )
    imported, waiting = set(), [ROOT / "static" / "app.js"]
    while waiting:
        module = waiting.pop()
        imported.add(str(module.relative_to(ROOT)))
        text = module.read_text("utf-8")
        found = re.findall(r"^(?:import|export) (?:[^'\n]*? from )?'(\.[^']*)'", text, re.MULTILINE)
        others = [(module.parent / path).resolve() for path in found]
        waiting += [one for one in others if str(one.relative_to(ROOT)) not in imported]
    assert "static/wire.js" in imported
    assert "static/views/board.js" not in imported, "it loads when it is opened"
    assert {path for path in named if path.startswith("static/")} == imported


async def test_path_cannot_leave_folder(server: LocalServer) -> None:
    ways = [
        "/static/../requirements.txt",
        "/static/%2e%2e/requirements.txt",
        "/static/..%2frequirements.txt",
        "/static/views/../../requirements.txt",
        "/static/views/%2E%2E/%2E%2E/requirements.txt",
        "/static/..%5crequirements.txt",
        "/static/%252e%252e/requirements.txt",
        f"/static/{ROOT}/requirements.txt",
        f"/static/{str(ROOT).replace('/', '%2f')}%2frequirements.txt",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/lib/marked/../acpx/package.json",
        "/lib/marked/%2e%2e/acpx/package.json",
        "/lib/marked/..%2f..%2frequirements.txt",
        "/lib/../requirements.txt",
        "/lib/marked//etc/passwd",
        "/../requirements.txt",
    ]
    for way in ways:
        status, body = await ask(server, way.encode())
        assert status == 404, way
        assert b"aiohttp==" not in body, way


async def test_impossible_file_name_is_not_found(server: LocalServer) -> None:
    names = [
        "app.js%00",
        "app.js%00.css",
        "%00",
        "views",
        "views/",
        "",
        "app.js/",
        "app.js/more",
        "x" * 300,
        "x/" * 2000 + "x",
        "%ff%fe",
        "%",
        "%zz",
        "~root",
        "con:",
        "APP.JS",
    ]
    for name in names:
        status, body = await ask(server, b"/static/" + name.encode())
        assert status == 404, (name[:20], status, body)


async def test_link_that_leaves_folder_is_not_found(
    serve: Serve,
    http: aiohttp.ClientSession,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, outside = tmp_path / "static", tmp_path / "static-private"
    folder.mkdir()
    outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (folder / "index.html").write_text("<p>page</p>")
    (folder / "docs.html").write_text("<p>docs</p>")
    (folder / "inside").symlink_to(folder / "index.html")
    (folder / "secret.txt").symlink_to(outside / "secret.txt")
    (folder / "folder").symlink_to(outside)
    (folder / "loop").symlink_to(folder / "loop")
    monkeypatch.setattr(page_module, "STATIC", folder)
    server = await serve()
    wanted = {
        "/static/inside": 200,
        "/static/secret.txt": 404,
        "/static/folder/secret.txt": 404,
        "/static/folder/../static-private/secret.txt": 404,
        "/static/loop": 404,
    }
    for path, status in wanted.items():
        got, body = await ask(server, path.encode())
        assert got == status, (path, body)
        assert b"secret" not in body or got == 404


async def test_served_files_are_read_only(server: LocalServer, http: aiohttp.ClientSession) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/", "/static/app.js"):
            async with http.request(method, server.url + path) as response:
                assert response.status == 405
                assert "GET" in response.headers["Allow"]


async def test_wire_client_works_in_node_as_documented(
    server: LocalServer, client: Client, tmp_path: Path
) -> None:
    docs = (ROOT / "docs" / "reference" / "browser.md").read_text("utf-8")
    (code,) = re.findall(
        r"^<!-- the node client -->\n```js\n(.*?)^```$", docs, re.DOTALL | re.MULTILINE
    )
    (tmp_path / "chat.mjs").write_text(code.replace("./static/", f"{ROOT.as_uri()}/static/"))
    process = await asyncio.create_subprocess_exec(
        NODE,
        "chat.mjs",
        "hello",
        cwd=tmp_path,
        env={"SERVER": server.url, "TOKEN": client.token or ""},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_SECS)
    assert said.decode() == "echo: hello\n(end_turn)\n"
    assert process.returncode == 0

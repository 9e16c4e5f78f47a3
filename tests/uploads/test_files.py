"""Uploads: stored for a limited time, named by a token, passed to the agent as paths."""

from __future__ import annotations

import io
import os
import re
import stat
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..conftest import Serve
from ..support.engine import only_sqlite
from ..support.harness import Client, Clock, Json, LocalServer, failure, texts_of

BOUNDARY = "the-boundary"


async def upload(
    client: Client, data: bytes, name: str = "notes.txt", ttl_secs: Any = None, query: str = ""
) -> tuple[int, Json]:
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", io.BytesIO(data), filename=name)
    if ttl_secs is not None:
        form.add_field("ttl_secs", str(ttl_secs))
    return await client.call("POST", f"/files{query}", data=form)


async def token_of(client: Client, data: bytes = b"data", name: str = "notes.txt") -> str:
    status, reply = await upload(client, data, name)
    assert status == 200, reply
    return str(reply["file_token"])


async def post_raw(
    client: Client, body: bytes, content_type: str = f"multipart/form-data; boundary={BOUNDARY}"
) -> tuple[int, Json]:
    return await client.call("POST", "/files", body, headers={"Content-Type": content_type})


def part(headers: str, data: str = "data") -> bytes:
    return f"--{BOUNDARY}\r\n{headers}\r\n\r\n{data}\r\n".encode()


END = f"--{BOUNDARY}--\r\n".encode()
FILE = 'Content-Disposition: form-data; name="file"; filename="a.txt"'


def uploads_in(server: LocalServer) -> list[Path]:
    folder = server.services.settings.data_dir / "uploads"
    return sorted(folder.rglob("*")) if folder.exists() else []


async def attached(client: Client, *tokens: str) -> list[Path]:
    """The paths of these files that the agent gets."""
    _, reply = await client.turn(await client.create(), "look", files=list(tokens))
    head, *paths, prompt = texts_of(reply["events"]).removeprefix("echo: ").split("\n")
    assert (head, prompt) == ("[Attached files]", "look")
    return [Path(path) for path in paths]


# Upload.


async def test_upload_returns_token(client: Client) -> None:
    status, reply = await upload(client, b"hello")
    assert status == 200
    assert reply["file_token"].startswith("ff_")
    assert len(reply["file_token"]) >= 43
    assert (reply["ttl_secs"], reply["size"]) == (3600, 5)


async def test_upload_requires_token(own_server: LocalServer) -> None:
    failure(await upload(own_server.anonymous(), b"hello"), 401, "unauthorized")
    assert uploads_in(own_server) == []


async def test_empty_file_is_accepted(client: Client) -> None:
    status, reply = await upload(client, b"")
    assert (status, reply["size"]) == (200, 0)
    (path,) = await attached(client, reply["file_token"])
    assert path.read_bytes() == b""


async def test_file_may_exceed_limit_of_json_body(client: Client) -> None:
    data = bytes(range(256)) * (68 << 10)  # 17 MiB
    status, reply = await upload(client, data)
    assert (status, reply["size"]) == (200, len(data))
    (path,) = await attached(client, reply["file_token"])
    assert path.read_bytes() == data


async def test_file_over_limit_is_refused_and_deleted(serve: Serve) -> None:
    server = await serve(max_upload_bytes=1000)
    client = await server.client()
    failure(await upload(client, b"x" * 1001), 413, "payload_too_large")
    failure(await upload(client, b"x" * (3 << 20)), 413, "payload_too_large")
    assert uploads_in(server) == []
    assert (await upload(client, b"x" * 1000))[0] == 200


async def test_number_of_files_per_app_is_limited(serve: Serve) -> None:
    clock = Clock()
    server = await serve(clock=clock, max_uploads_per_app=2)
    client, other = await server.client(), await server.client("other")
    await upload(client, b"x", ttl_secs=60)
    failure(await upload(client, b"x", ttl_secs=1), 400, "bad_request")
    assert (await upload(client, b"x"))[0] == 200
    assert "2 files" in failure(await upload(client, b"x"), 429, "rate_limited")
    assert (await upload(other, b"x"))[0] == 200
    # A restarted server counts them, too. Expired files no longer count.
    await server.stop()
    server = await serve(clock=clock, max_uploads_per_app=2)
    client = Client(server.url, client.token, client.http)
    failure(await upload(client, b"x"), 429, "rate_limited")
    clock.advance(61)
    await server.services.files.sweep()
    assert (await upload(client, b"x"))[0] == 200
    failure(await upload(client, b"x"), 429, "rate_limited")


@only_sqlite
async def test_start_deletes_unfinished_uploads(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    token = await token_of(client)
    folder = uploads_in(server)[0].parent
    await server.stop()
    (folder / "half").mkdir()
    (folder / "half" / "notes.txt").write_text("ha")
    server = await serve()
    client = Client(server.url, client.token, client.http)
    assert len(uploads_in(server)) == 2
    assert len(await attached(client, token)) == 1


async def test_ttl_secs_has_limits(client: Client) -> None:
    for good in (60, 86400):
        status, reply = await upload(client, b"x", ttl_secs=good)
        assert (status, reply["ttl_secs"]) == (200, good)
    for bad in (59, 86401, -60, 0, "x", "60.5", "9" * 5000):
        assert "ttl_secs" in failure(await upload(client, b"x", ttl_secs=bad), 400, "bad_request")
        response = await upload(client, b"x", query=f"?ttl_secs={bad}")
        assert "ttl_secs" in failure(response, 400, "bad_request")


async def test_upload_with_bad_ttl_is_deleted(own_client: Client, own_server: LocalServer) -> None:
    failure(await upload(own_client, b"x", ttl_secs=1), 400, "bad_request")
    assert uploads_in(own_server) == []


async def test_malformed_upload_is_refused_and_deleted(
    own_client: Client, own_server: LocalServer
) -> None:
    for body in (
        b"",
        b"no multipart at all",
        END,
        f"--{BOUNDARY}".encode(),
        f"--{BOUNDARY}\r\n".encode(),
        part('Content-Disposition: form-data; name="other"') + END,
        part("Content-Type: text/plain") + END,
        part("Content-Disposition") + END,
        part(f"{FILE}\r\nno colon") + END,
        part(f"{FILE}\r\n{'X-Long: ' + 'x' * 20_000}") + END,
        part(f"{FILE}\r\nContent-Transfer-Encoding: nonsense") + b"--other--\r\n",
        part(f"{FILE}\r\nContent-Type: multipart/mixed; boundary=inner"),
        part(f"{FILE}\r\nContent-Type: multipart/mixed"),
        b"x" * 600_000,
        part(FILE)[:-2],
        part(FILE)[: -len("data\r\n")],
        part(FILE) + part('Content-Disposition: form-data; name="ttl_secs"', "soon") + END,
    ):
        failure(await post_raw(own_client, body), 400, "bad_request")
    for content_type in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 100}",
        "multipart/",
        "application/json",
        "text/plain",
        "nonsense",
    ):
        failure(await post_raw(own_client, part(FILE) + END, content_type), 400, "bad_request")
    assert uploads_in(own_server) == []


async def test_file_field_is_found_among_other_fields(client: Client) -> None:
    before = part('Content-Disposition: form-data; name="comment"', "hello")
    after = part('Content-Disposition: form-data; name="ttl_secs"', "120")
    status, reply = await post_raw(client, before + part(FILE, "the file") + after + END)
    assert (status, reply["ttl_secs"], reply["size"]) == (200, 120, 8)


# Storage.


NAMES = (
    *("../../x", "/etc/passwd", "..", ".", "", "....//x", "..\\..\\x", "C:\\x\\y.txt"),
    *("a\0b", "nul\0", "%2e%2e%2fx", "-rf", "--help", ".bashrc", "~", "$(id)", "a;b|c`d`"),
    *("Übung – 文件.pdf", "\u202egpj.exe", "😀", "x" * 5000 + ".txt", "a\tb", " ", "con."),
)


async def test_name_is_never_used_as_path(client: Client, server: LocalServer) -> None:
    files = server.services.settings.data_dir / "files"
    tokens = []
    for name in NAMES:
        header = f'Content-Disposition: form-data; name="file"; filename="{name}"'
        status, reply = await post_raw(client, part(header) + END)
        if "\0" in name:
            failure((status, reply), 400, "bad_request")
        else:
            assert status == 200, (name, reply)
            tokens.append(reply["file_token"])
    for path in await attached(client, *tokens):
        assert path.parents[2] == files == path.resolve().parents[2]
        assert path.read_bytes() == b"data"
        assert not re.search(r"[\s;|`$~()/\\\x00-\x1f\u200b-\u202e]|^[.-]", path.name)
        assert len(os.fsencode(path.name)) <= 255


@pytest.mark.filterwarnings("ignore::aiohttp.BadContentDispositionHeader")
async def test_agent_gets_names_of_every_script(client: Client) -> None:
    headers = (
        ('filename="план.txt"', "план.txt"),
        ('filename="отчёт.txt"', "отчёт.txt"),
        ("filename*=UTF-8''%E6%8A%A5%E5%91%8A.pdf", "报告.pdf"),
        ('filename="a; b; c.txt"', "a_b_c.txt"),
    )
    tokens = []
    for header, _ in headers:
        body = part(f'Content-Disposition: form-data; name="file"; {header}') + END
        tokens.append((await post_raw(client, body))[1]["file_token"])
    paths = await attached(client, *tokens)
    assert [path.name for path in paths] == [kept for _, kept in headers]


async def test_files_with_same_name_are_separate(client: Client) -> None:
    tokens = [await token_of(client, data, "план.txt") for data in (b"one", b"two")]
    paths = await attached(client, *tokens)
    assert [path.name for path in paths] == ["план.txt"] * 2
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]


async def test_only_server_user_can_read_uploads(
    own_client: Client, own_server: LocalServer
) -> None:
    await token_of(own_client)
    folder, _ = uploads_in(own_server)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_only_hash_of_file_token_is_stored(client: Client, server: LocalServer) -> None:
    token = await token_of(client)
    data = server.services.settings.data_dir
    for path in data.rglob("*"):
        assert token not in str(path)
        assert not path.is_file() or token.encode() not in path.read_bytes()


# Prompts.


async def test_file_paths_precede_prompt_text(client: Client) -> None:
    tokens = [await token_of(client, data, f"{data.decode()}.txt") for data in (b"one", b"two")]
    session = await client.create()
    status, reply = await client.turn(session, "the prompt\nitself", files=tokens)
    assert status == 200
    text = texts_of(reply["events"]).removeprefix("echo: ")
    head, one, two, *prompt = text.split("\n")
    assert head == "[Attached files]"
    assert prompt == ["the prompt", "itself"]
    assert Path(one).is_absolute()
    assert [Path(path).read_bytes() for path in (one, two)] == [b"one", b"two"]
    turn_start = next(e for e in await client.events(session) if e["type"] == "turn_start")
    assert turn_start["prompt"] == [{"type": "text", "text": text}]


async def test_file_paths_precede_first_text_block(client: Client) -> None:
    image = {"type": "image", "data": "aGVsbG8=", "mimeType": "image/png"}
    text = {"type": "text", "text": "look", "annotations": {"priority": 1}}
    token = await token_of(client)
    session = await client.create()
    for prompt in ([image, text, text], [image]):
        assert (await client.turn(session, prompt, files=[token]))[0] == 200
    first, second = [e for e in await client.events(session) if e["type"] == "turn_start"]
    (path,) = await attached(client, token)
    path = Path(str(path).replace(path.parts[-3], session))  # each session has a copy
    head = f"[Attached files]\n{path}"
    assert first["prompt"] == [image, {**text, "text": f"{head}\nlook"}, text]
    assert second["prompt"] == [{"type": "text", "text": head}, image]


async def test_prompt_without_files_is_unchanged(client: Client) -> None:
    session = await client.create()
    files: Any
    for files in ([], None):
        _, reply = await client.turn(session, "hello", files=files)
        assert texts_of(reply["events"]) == "echo: hello"


async def test_file_can_be_attached_repeatedly(client: Client) -> None:
    token = await token_of(client)
    assert len(await attached(client, token, token)) == 2
    assert len(await attached(client, token)) == 1


async def test_socket_prompt_accepts_files(client: Client) -> None:
    token = await token_of(client)
    socket = await client.connect(await client.create())
    await socket.turn("hello", files=[token])
    assert socket.text().startswith("echo: [Attached files]\n/")
    await socket.send("prompt", prompt="hello", id="c2", files=["ff_unknown"])
    assert (await socket.until("error"))["code"] == "bad_request"


async def test_file_tokens_of_another_app_are_refused(server: LocalServer) -> None:
    mine, other = await server.client("mine"), await server.client("other")
    token, session = await token_of(mine), await other.create()
    responses = [
        await other.turn(session, "hello", files=files)
        for files in (
            [token],
            ["ff_unknown"],
            ["../../etc/passwd"],
            [""],
            [await token_of(other), token],
        )
    ]
    messages = {failure(response, 400, "bad_request") for response in responses}
    assert len(messages) == 1  # the error does not reveal which token is unknown
    bad: Any
    for bad in ("ff_x", [1], {}, [None]):
        failure(await other.turn(session, "hello", files=bad), 400, "bad_request")
    assert (await other.state(session))["turn_count"] == 0


async def test_file_token_is_valid_until_it_expires(serve: Serve) -> None:
    clock = Clock()
    client = await (await serve(clock=clock)).client()
    _, reply = await upload(client, b"x", ttl_secs=60)
    session = await client.create()
    clock.advance(59)
    assert (await client.turn(session, "x", files=[reply["file_token"]]))[0] == 200
    clock.advance(2)
    failure(await client.turn(session, "x", files=[reply["file_token"]]), 400, "bad_request")


async def test_file_tokens_survive_restart(serve: Serve) -> None:
    server = await serve()
    client = await server.client()
    token = await token_of(client)
    await server.stop()
    client = Client((await serve()).url, client.token, client.http)
    assert len(await attached(client, token)) == 1


async def test_repeated_prompt_does_not_require_its_files(
    serve: Serve,
) -> None:
    clock = Clock()
    client = await (await serve(clock=clock)).client()
    token, session = await token_of(client), await client.create()
    path, key = f"/sessions/{session}/turn", {"Idempotency-Key": "k"}
    body = {"prompt": "hello", "files": [token]}
    first = await client.post(path, body, headers=key)
    assert first[0] == 200
    clock.advance(3601)
    assert await client.post(path, body, headers=key) == first
    socket = await client.connect(session)
    await socket.send("prompt", id="k", prompt="hello", files=[token])
    assert (await socket.until("accepted"))["duplicate"] is True
    await client.delete(f"/sessions/{session}")
    assert await client.post(path, body, headers=key) == first
    failure(await client.post(path, body), 410, "session_closed")

"""OpenAI's chat API, as its official client uses it."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from ..conftest import Serve
from ..support.client import Client
from ..support.harness import LocalServer, eventually, script

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PIXEL = base64.b64encode(b"\x89PNG").decode()


@pytest.fixture
async def chat(client: Client) -> AsyncIterator[AsyncOpenAI]:
    """The official client, with the app's token as its key."""
    import openai  # takes a second, also in the workers that run other tests

    async with openai.AsyncOpenAI(
        api_key=client.token, base_url=f"{client.url}/v1", max_retries=0
    ) as opened:
        yield opened


async def answer(chat: AsyncOpenAI, *messages: Any, **options: Any) -> Any:
    return await chat.chat.completions.create(
        model=options.pop("model", "mock"), messages=list(messages), **options
    )


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


async def until_no_session(client: Client) -> None:
    async def is_closed() -> bool:
        return bool((await client.get("/sessions"))[1]["count"] == 0)

    await eventually("the session to be closed", is_closed)


async def test_models_are_the_installed_agents(chat: AsyncOpenAI, client: Client) -> None:
    _, reply = await client.get("/agents")
    installed = [agent["name"] for agent in reply["agents"] if agent["installed"]]
    assert [model.id async for model in chat.models.list()] == installed


async def test_single_message_is_the_prompt(chat: AsyncOpenAI, client: Client) -> None:
    completion = await answer(chat, user("hello"), temperature=0.3, max_tokens=5, user="someone")
    [choice] = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("echo: hello", "stop")
    assert completion.object == "chat.completion"
    assert completion.model == "mock"
    await until_no_session(client)


async def test_earlier_messages_come_first_as_text(chat: AsyncOpenAI) -> None:
    completion = await answer(
        chat,
        {"role": "system", "content": "Be brief."},
        user("What is 2+2?"),
        {"role": "assistant", "content": "4"},
        user("And 3+3?"),
    )
    text = completion.choices[0].message.content
    assert "User: What is 2+2?\n\nAssistant: 4" in text
    assert text.endswith("And 3+3?")


async def test_system_message_is_the_system_prompt(chat: AsyncOpenAI) -> None:
    completion = await answer(
        chat, {"role": "system", "content": "Be brief."}, user(script({"report": True}))
    )
    assert "Be brief." in completion.choices[0].message.content


async def test_images_and_files_are_content_blocks(chat: AsyncOpenAI) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "input_audio", "input_audio": {"data": PIXEL, "format": "wav"}},
        {
            "type": "file",
            "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{PIXEL}"},
        },
        {"type": "text", "text": script({"echo": True})},
    ]
    content = (await answer(chat, user(parts))).choices[0].message.content
    for kind in ("image", "resource_link", "audio", "resource"):
        assert f'"type":"{kind}"' in content.replace(": ", ":")


async def test_stream_has_the_text_in_pieces_and_the_usage(chat: AsyncOpenAI) -> None:
    usage = {"inputTokens": 10, "outputTokens": 2, "cachedReadTokens": 5, "totalTokens": 17}
    prompt = script(
        {"say": "one "}, {"say": "two"}, {"result": {"stopReason": "max_tokens", "usage": usage}}
    )
    stream = await answer(chat, user(prompt), stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert texts == ["", "one ", "two", None]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.prompt_tokens == 15
    assert (chunks[-1].usage.completion_tokens, chunks[-1].usage.total_tokens) == (2, 17)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_is_in_the_response(chat: AsyncOpenAI) -> None:
    result = {"stopReason": "end_turn", "usage": {"inputTokens": 7, "outputTokens": 3}}
    completion = await answer(chat, user(script({"result": result})))
    assert completion.usage.prompt_tokens == 7
    assert completion.usage.completion_tokens == 3


async def test_session_is_continued_with_the_last_message(
    chat: AsyncOpenAI, client: Client
) -> None:
    session = await client.create()
    for options in (
        {"extra_headers": {"X-Session-Id": session}},
        {"metadata": {"session_id": session}},
    ):
        completion = await answer(
            chat, user("earlier"), {"role": "assistant", "content": "x"}, user("now"), **options
        )
        assert completion.choices[0].message.content == "echo: now"
    assert (await client.state(session))["turn_count"] == 2


async def test_failures_have_the_shape_of_the_api(
    server: LocalServer, chat: AsyncOpenAI, client: Client
) -> None:
    import openai

    with pytest.raises(openai.NotFoundError) as missing:
        await answer(chat, user("x"), model="no such agent")
    assert missing.value.code == "model_not_found"
    other = await server.client("another")
    theirs = await other.create()
    for session in (theirs, "00000000-0000-4000-8000-000000000000"):
        with pytest.raises(openai.NotFoundError) as absent:
            await answer(chat, user("x"), extra_headers={"X-Session-Id": session})
        assert absent.value.code == "not_found"
    with pytest.raises(openai.BadRequestError):
        await answer(chat, user([{"type": "image_url", "image_url": {}}]))
    with pytest.raises(openai.BadRequestError):
        await answer(chat, user("x"), response_format={"type": "json_object"})
    with pytest.raises(openai.BadRequestError):
        await answer(chat, user("x"), n=2)
    odd: tuple[Any, ...] = 7, [], {"a": "b"}
    for named in odd:
        with pytest.raises(openai.BadRequestError):
            await answer(chat, user("x"), metadata={"session_id": named})
    with pytest.raises(openai.InternalServerError) as failed:
        await answer(chat, user(script({"error": {"code": -32603, "message": "broken"}})))
    assert failed.value.code == "agent_failed"
    stranger = openai.AsyncOpenAI(api_key="cf_unknown", base_url=f"{client.url}/v1", max_retries=0)
    async with stranger:
        with pytest.raises(openai.AuthenticationError):
            await answer(stranger, user("x"))
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_prompt_above_the_rate_makes_no_session(server: LocalServer) -> None:
    limited = await server.client("limited", limits={"prompts_per_min": 1, "sessions": 1})
    await limited.create()
    body = {"messages": [{"role": "user", "content": "x"}]}
    status, reply = await limited.post("/v1/chat/completions", body)
    assert (status, reply["error"]["code"]) == (503, "pool_full")
    await limited.turn((await limited.get("/sessions"))[1]["sessions"][0]["session_id"], "x")
    status, reply = await limited.post("/v1/chat/completions", body)
    assert (status, reply["error"]["code"]) == (429, "rate_limited")


async def test_calls_that_the_server_does_not_have_fail_in_the_shape_of_the_api(
    chat: AsyncOpenAI, client: Client
) -> None:
    import openai

    with pytest.raises(openai.NotFoundError) as missing:
        await chat.embeddings.create(model="mock", input="hello")
    assert (missing.value.code, missing.value.type) == ("not_found", "invalid_request_error")
    status, reply = await client.get("/v1/chat/completions")
    assert (status, reply["error"]["code"]) == (405, "method_not_allowed")
    assert set(reply) == {"error"}


async def test_failure_of_a_stream_is_raised_by_the_client(chat: AsyncOpenAI) -> None:
    import openai

    prompt = script({"say": "one"}, {"error": {"code": -32603, "message": "broken"}})
    stream = await answer(chat, user(prompt), stream=True)
    with pytest.raises(openai.APIError, match="broken"):
        async for _ in stream:
            pass


@pytest.mark.slow
async def test_client_that_leaves_closes_a_stateless_session(
    chat: AsyncOpenAI, client: Client
) -> None:
    stream = await answer(chat, user(script({"say": "begun"}, {"hang": True})), stream=True)
    async for chunk in stream:
        if chunk.choices[0].delta.content == "begun":
            break
    await stream.close()
    await until_no_session(client)


async def test_client_that_leaves_before_the_answer_closes_a_stateless_session(
    serve: Serve,
) -> None:
    import openai

    server = await serve()
    client = await server.client()
    async with openai.AsyncOpenAI(
        api_key=client.token,
        base_url=f"{client.url}/v1",
        max_retries=0,
        timeout=0.5,
    ) as chat:
        with pytest.raises(openai.APITimeoutError):
            await answer(chat, user(script({"hang": True})))
    await until_no_session(client)

"""LiteLLM, with the server as an API like OpenAI's. Prints what it received as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import litellm

PIXEL = os.environ["PIXEL"]
API: dict[str, Any] = {
    "api_base": f"{os.environ['URL']}/v1",
    "api_key": os.environ["TOKEN"],
    "num_retries": 0,
}


def ask(content: Any, **options: Any) -> Any:
    model = options.pop("model", "openai/mock")
    messages = [{"role": "user", "content": content}]
    return litellm.completion(model=model, messages=messages, **API, **options)


async def ask_async(content: Any) -> str:
    messages = [{"role": "user", "content": content}]
    reply = await litellm.acompletion(model="openai/mock", messages=messages, **API)
    return str(reply.choices[0].message.content)


def error_of(call: Any) -> list[str]:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test checks it
        return [type(error).__name__, str(getattr(error, "status_code", None))]
    return ["none", ""]


def main() -> None:
    plain = ask("hello", temperature=0.1, max_tokens=10, user="someone")
    url = f"data:image/png;base64,{PIXEL}"
    pictures = ask(
        [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": os.environ["ECHO"]},
        ]
    )
    chunks = list(ask(os.environ["STREAM"], stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    session = {"X-Session-Id": os.environ["SESSION"]}
    continued = [
        ask(text, extra_headers=session).choices[0].message.content for text in ("one", "two")
    ]
    sys.stdout.write(
        json.dumps(
            {
                "plain": plain.choices[0].message.content,
                "finish": plain.choices[0].finish_reason,
                "usage": plain.usage.model_dump(),
                "pictures": pictures.choices[0].message.content,
                "streamed": whole.choices[0].message.content,
                "streamed_usage": whole.usage.model_dump(),
                "continued": continued,
                "asynchronous": asyncio.run(ask_async("hello")),
                "missing": error_of(lambda: ask("x", model="openai/none")),
                "failed": error_of(lambda: ask(os.environ["FAIL"])),
                "failed_stream": error_of(lambda: list(ask(os.environ["FAIL"], stream=True))),
            }
        )
    )


main()

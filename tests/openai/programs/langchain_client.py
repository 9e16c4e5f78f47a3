"""LangChain's ChatOpenAI, with the server as its API. Prints what it received as JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

PIXEL = os.environ["PIXEL"]


def chat(**options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{os.environ['URL']}/v1",
        api_key=os.environ["TOKEN"],
        model=options.pop("model", "mock"),
        max_retries=0,
        **options,
    )


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}


def error_of(call: Any) -> list[str]:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the test checks it
        return [type(error).__name__, str(getattr(error, "code", None))]
    return ["none", ""]


def main() -> None:
    plain = chat(temperature=0.2, max_tokens=100, top_p=0.5, seed=1, stop=["x"]).invoke("hello")
    conversation = chat().invoke(
        [
            SystemMessage("Be brief."),
            HumanMessage("What is 2+2?"),
            AIMessage("4"),
            HumanMessage("And 3+3?"),
        ]
    )
    image = {"type": "image", "base64": PIXEL, "mime_type": "image/png"}
    pictures = chat().invoke([HumanMessage([image, {"type": "text", "text": os.environ["ECHO"]}])])
    chunks = list(chat(stream_usage=True).stream(os.environ["STREAM"]))
    streamed = chunks[0]
    for chunk in chunks[1:]:
        streamed += chunk
    session = {"X-Session-Id": os.environ["SESSION"]}
    continued = [chat(default_headers=session).invoke(text).content for text in ("one", "two")]
    with_tools = chat().bind_tools([ADD]).invoke("tools")
    sys.stdout.write(
        json.dumps(
            {
                "plain": plain.content,
                "finish": plain.response_metadata["finish_reason"],
                "usage": plain.usage_metadata,
                "conversation": conversation.content,
                "pictures": pictures.content,
                "pieces": [chunk.content for chunk in chunks if chunk.content],
                "streamed": streamed.content,
                "streamed_usage": streamed.usage_metadata,
                "continued": continued,
                "tools": [with_tools.content, len(with_tools.tool_calls)],
                "missing": error_of(lambda: chat(model="none").invoke("x")),
                "failed": error_of(lambda: chat().invoke(os.environ["FAIL"])),
                "failed_stream": error_of(lambda: list(chat().stream(os.environ["FAIL"]))),
            }
        )
    )


main()

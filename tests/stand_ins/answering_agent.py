"""A small ACP agent that gives the answers of its arguments, one for each prompt.

It appends the text of each prompt to the file in ``ANSWERING_LOG``, as a line of JSON.
"""

import json
import os
import sys
from pathlib import Path


def send(message: dict[str, object]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main() -> None:
    answers = iter(sys.argv[1:])
    for line in sys.stdin:
        request = json.loads(line)
        result: dict[str, object] = {}
        match request.get("method"):
            case "initialize":
                result = {"protocolVersion": 1, "agentCapabilities": {}}
            case "session/new":
                result = {"sessionId": "the-conversation"}
            case "session/prompt":
                text = "".join(block["text"] for block in request["params"]["prompt"])
                with Path(os.environ["ANSWERING_LOG"]).open("a", encoding="utf-8") as log:
                    log.write(json.dumps(text) + "\n")
                update = {
                    "sessionUpdate": "agent_message_chunk",
                    "content": {"type": "text", "text": next(answers)},
                }
                cost = {"amount": 0.25, "currency": "USD"}
                for one in (
                    update,
                    {"sessionUpdate": "usage_update", "used": 5, "size": 9, "cost": cost},
                ):
                    params = {"sessionId": "the-conversation", "update": one}
                    send({"method": "session/update", "params": params})
                usage = {"inputTokens": 10, "outputTokens": 2, "totalTokens": 12}
                result = {"stopReason": "end_turn", "usage": usage}
        if "id" in request:
            send({"id": request["id"], "result": result})


if __name__ == "__main__":
    main()

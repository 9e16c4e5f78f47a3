"""A conversation worth looking at, as an agent would send it: what the pictures show."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

FLAKY = "The login test fails now and then. Find out why and fix it."
CHECK = "Good. Run the whole suite, then remove the old fixture."

_OLD = """async def login(client, name):
    await client.post("/login", json={"name": name})
    await asyncio.sleep(0.1)
    return client.cookies["session"]
"""
_NEW = """async def login(client, name):
    response = await client.post("/login", json={"name": name})
    assert response.status == 200
    return response.cookies["session"]
"""
_RUN = (
    "\x1b[1m============ test session starts ============\x1b[0m\n"
    "collected 12 items\n\n"
    "tests/test_login.py \x1b[32m............\x1b[0m                 [100%]\n\n"
    "\x1b[32m============ \x1b[1m12 passed\x1b[0m\x1b[32m in 1.84s ============\x1b[0m\n"
)
_ANSWER = """\
The test waited **100 ms** and hoped that the cookie was there. On a busy machine it was not.

### What changed

- `login()` now reads the cookie from the **response itself**, so there is nothing to wait for.
- It also checks the status: a login that fails says so at once.

```python
response = await client.post("/login", json={"name": name})
assert response.status == 200
return response.cookies["session"]
```

| run | before | after |
| --- | ---: | ---: |
| 200 times, idle | 3 failed | 0 failed |
| 200 times, busy | 41 failed | 0 failed |

The old fixture `slow_login` is not used any more. Shall I remove it?
"""


def _update(kind: str, /, **fields: Any) -> Json:
    return {"update": {"sessionUpdate": kind, **fields}}


def _text(text: str) -> list[Json]:
    return [{"type": "content", "content": {"type": "text", "text": text}}]


def _plan(done: int) -> Json:
    steps = ["Reproduce the failure", "Find what it waits for", "Fix it", "Run the tests 200 times"]
    states = ["completed"] * done + ["in_progress"] + ["pending"] * 4
    entries = [
        {"content": step, "priority": "medium", "status": state}
        for step, state in zip(steps, states, strict=False)
    ]
    return _update("plan", entries=entries)


def _tool(identity: str, title: str, kind: str, **fields: Any) -> Json:
    return _update(
        "tool_call", toolCallId=identity, title=title, kind=kind, status="completed", **fields
    )


def _options(*choices: tuple[str, str, str]) -> Json:
    options = [
        {
            "id": name.lower(),
            "name": name,
            "type": "select",
            "currentValue": value,
            "options": [{"value": value, "name": label}],
        }
        for name, label, value in choices
    ]
    return _update("config_option_update", configOptions=options)


OTHERS = [
    "Upgrade the dependencies",
    "Why is the build slow?",
    "Draft the release notes",
    "Port the parser",
    "Review the auth module",
]

PLAYS: dict[str, list[Json]] = {
    FLAKY: [
        _update("session_info_update", title="Fix the flaky login test"),
        _options(
            ("Mode", "Ask first", "default"),  # the mode in which claude asks
            ("Model", "Large", "large"),
            ("Thinking", "Medium", "medium"),
        ),
        {"think": "A test that fails now and then waits for time, not for an event. "},
        {"think": "I will look for a sleep in the login helper first."},
        _plan(1),
        _tool("t1", "Read tests/test_login.py", "read", locations=[{"path": "/app/tests/a.py"}]),
        _tool(
            "t2",
            "Search for “sleep(” in tests",
            "search",
            content=_text("3 matches in 2 files"),
        ),
        _plan(2),
        _tool(
            "t3",
            "Edit tests/helpers.py",
            "edit",
            locations=[{"path": "/app/tests/helpers.py", "line": 14}],
            content=[
                {"type": "diff", "path": "/app/tests/helpers.py", "oldText": _OLD, "newText": _NEW}
            ],
        ),
        _plan(3),
        _tool(
            "t4",
            "pytest tests/test_login.py",
            "execute",
            rawInput={"command": "pytest tests/test_login.py"},
            content=_text(_RUN),
        ),
        _plan(4),
        {"say": _ANSWER},
        _update(
            "usage_update", used=34_200, size=200_000, cost={"amount": 0.21, "currency": "USD"}
        ),
    ],
    CHECK: [
        {"think": "Removing a file needs a permission. The tests come first."},
        {"say": "All **148 tests** pass. Nothing else uses `slow_login`, so I will remove it."},
        {
            "permission": {
                "options": [
                    {"optionId": "once", "name": "Allow", "kind": "allow_once"},
                    {"optionId": "always", "name": "Always allow", "kind": "allow_always"},
                    {"optionId": "reject", "name": "Reject", "kind": "reject_once"},
                ],
                "toolCall": {
                    "toolCallId": "t5",
                    "title": "rm tests/fixtures/slow_login.py",
                    "kind": "execute",
                    "rawInput": {"command": "rm tests/fixtures/slow_login.py"},
                },
            }
        },
    ],
}

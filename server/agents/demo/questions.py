"""The demo agent's questions: a form with every type of field, and a link."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .rpc import Json
    from .turn import DemoTurn

SIZES = [
    {"const": "s", "title": "Small", "description": "For one"},
    {"const": "m", "title": "Medium", "description": "For a few"},
    {"const": "l", "title": "Large", "description": "For everybody"},
]
FORM: Json = {
    "type": "object",
    "properties": {
        "size": {"type": "string", "title": "Size", "oneOf": SIZES, "default": "m"},
        "toppings": {
            "type": "array",
            "title": "Toppings",
            "description": "At most two.",
            "items": {"type": "string", "enum": ["Basil", "Olives", "Mushrooms", "Onions"]},
            "maxItems": 2,
        },
        "count": {
            "type": "integer",
            "title": "How many",
            "minimum": 1,
            "maximum": 20,
            "default": 2,
        },
        "budget": {"type": "number", "title": "Budget", "minimum": 0},
        "name": {
            "type": "string",
            "title": "Your name",
            "description": "Letters and blanks.",
            "minLength": 2,
            "maxLength": 40,
            "pattern": "^[\\p{L} ]+$",
        },
        "email": {"type": "string", "title": "E-mail", "format": "email"},
        "site": {"type": "string", "title": "Website", "format": "uri"},
        "day": {"type": "string", "title": "Day", "format": "date"},
        "when": {"type": "string", "title": "Call me at", "format": "date-time"},
        "gift": {"type": "boolean", "title": "It is a gift", "default": False},
    },
    "required": ["size", "name"],
}
NOT_ANSWERED = (
    "I got no answer. Questions need a session with `elicitation: ask`, and somebody who answers."
)


def ask_form(turn: DemoTurn, _: str) -> None:
    turn.think("Some things only you can know, so I will ask.")
    params = {"mode": "form", "message": "What may I order for you?", "requestedSchema": FORM}
    answer = turn.ask("elicitation/create", params)
    content = answer.get("content")
    if answer.get("action") == "accept" and isinstance(content, dict):
        titles = {name: field["title"] for name, field in FORM["properties"].items()}
        rows = [f"| {titles.get(name, name)} | {_told(value)} |" for name, value in content.items()]
        turn.say("Thank you. You said:\n\n| | |\n| --- | --- |\n" + "\n".join(rows))
    else:
        turn.say("You would rather not say." if answer.get("action") == "decline" else NOT_ANSWERED)


def _told(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def ask_link(turn: DemoTurn, _: str) -> None:
    turn.think("Secrets do not belong in a form. A link leads to where they do.")
    link = {"url": "https://example.com/sign-in?client=demo", "elicitationId": os.urandom(8).hex()}
    params = {"mode": "url", "message": "Please sign in, or pretend to.", **link}
    answer = turn.ask("elicitation/create", params)
    if answer.get("action") == "accept":
        done = {"elicitationId": link["elicitationId"]}
        turn.client.send({"method": "elicitation/complete", "params": done})
        turn.say("You opened the link. I will believe that you have signed in.")
    else:
        turn.say("We will do without." if answer.get("action") == "decline" else NOT_ANSWERED)
